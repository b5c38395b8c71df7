//! All journeys, on one real cluster: see `suite`.
#![allow(clippy::print_stdout, reason = "it reports as libtest does")]

use std::{cell::RefCell, process::ExitCode};

use anyhow::{Context as _, ensure};
use towline_e2e::{
    access, acting, audit_join,
    bad_days::{self, Trouble},
    blind, blind_run, chart, egress, hostile, identity, kill, pod,
    programs::Programs,
    resume,
    stage::Stage,
    suite::{self, Check},
    table::{self, Selection},
};
use xtask::cluster::{Cluster, Options};

fn main() -> ExitCode {
    if std::env::args().any(|argument| argument == "--list") {
        // What asks for a list only wants to know that there is one.
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("error: {error:#}");
            println!("test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Runtime::new()?;
    let options =
        Options { name: format!("e2e-{}", std::process::id()), node: true, apiserver_arguments: Vec::new() };
    let programs = Programs::build()?;
    let cluster = Cluster::up(&options)?;
    table::grant(&cluster)?;
    let stage = runtime.block_on(Stage::set(cluster.clone(), programs));
    let passed = stage.and_then(|stage| all(&runtime, stage));
    cluster.down()?;
    passed
}

fn all(runtime: &tokio::runtime::Runtime, stage: Stage) -> anyhow::Result<bool> {
    let stage = RefCell::new(stage);
    let trouble: RefCell<Option<Trouble>> = RefCell::new(None);
    // The stage's own tasks (the issuer) run on the runtime; the checks wait outside of it.
    let with_trouble = |run: &dyn Fn(&Trouble, &mut Stage) -> anyhow::Result<()>| -> anyhow::Result<()> {
        let mut stage = stage.try_borrow_mut().context("the checks run one after the other")?;
        let mut trouble = trouble.try_borrow_mut()?;
        if trouble.is_none() {
            *trouble = Some(Trouble::set(&stage)?);
        }
        run(trouble.as_ref().context("it was just set")?, &mut stage)
    };
    let checks = vec![
        Check::new("every_case_of_the_table_is_equal_directly_and_through", || {
            let stage = stage.try_borrow()?;
            let mut lines = Vec::new();
            let rows = table::run(&stage.cluster, Some(&stage), &Selection::default(), |row| {
                println!("{}", row.print());
                if !row.is_equal() || !row.is_expected() {
                    lines.push(row.print());
                }
            })?;
            ensure!(lines.is_empty(), "{} of {} rows:\n{}", lines.len(), rows.len(), lines.join("\n"));
            Ok(())
        }),
        Check::new("every_event_of_a_users_joins_one_line_of_the_agent_and_one_channel_of_the_relay", || {
            let joined = audit_join::run(&*stage.try_borrow()?)?;
            println!("{} events, {} requests, {} channels", joined.events, joined.requests, joined.channels);
            Ok(())
        }),
        Check::new("each_login_and_kind_of_token_works_and_what_is_open_ends_with_its_right", || {
            let stage = stage.try_borrow()?;
            let say = |row: &identity::Row| println!("{}", row.print());
            let rows = identity::run(&stage.cluster, &stage.programs, runtime.handle(), None, say)?;
            let failed: Vec<String> =
                rows.iter().filter(|row| row.result.is_err()).map(identity::Row::print).collect();
            ensure!(failed.is_empty() && !rows.is_empty(), "{}", failed.join("\n"));
            Ok(())
        }),
        Check::new("the_relay_sees_no_canary_that_is_inside_inner_tls", || {
            let stage = stage.try_borrow()?;
            let run = runtime.block_on(blind_run::run(&stage.cluster, &stage.programs))?;
            blind::judge(&run.outside, &run.inside, &run.canaries)
        }),
        Check::new("what_is_wrong_from_the_start_is_said_at_the_start", || {
            bad_days::wrong_from_the_start(&*stage.try_borrow()?)
        }),
        Check::new("files_that_can_not_be_used_are_named_and_left_alone", || {
            bad_days::unusable_files(&*stage.try_borrow()?)
        }),
        Check::new("run_does_one_command_with_its_exit_code", || {
            bad_days::one_command(&*stage.try_borrow()?)
        }),
        Check::new("the_kubeconfig_is_left_as_it_came", || {
            bad_days::leaves_as_it_came(&*stage.try_borrow()?)
        }),
        Check::new("a_request_can_be_followed_through_all_logs", || {
            with_trouble(&|trouble, stage| bad_days::can_be_followed(stage, trouble))
        }),
        Check::new("t01_t53_kubectl_as_is_what_the_clusters_own_rules_allow", || {
            acting::as_somebody_else(&*stage.try_borrow()?)
        }),
        Check::new(
            "t01_t02_t04_t05_t06_t07_t09_t11_t13_t16_t17_t18_t19_t21_t23_t24_t45_t49_t53_nothing_hostile_reaches_the_real_apiserver",
            || {
                let seen = runtime.block_on(hostile::run(&stage.try_borrow()?.cluster))?;
                println!(
                    "{} hostile requests; {} others, and {} of the agent's own",
                    seen.hostile, seen.sound, seen.own
                );
                Ok(())
            },
        ),
        Check::new(
            "the_agents_accounts_have_no_more_rights_than_they_need_and_tokens_can_be_passed_on",
            || access::run(runtime, &stage.try_borrow()?.programs),
        ),
        Check::new("a_second_proxy_for_a_cluster_is_refused", || {
            with_trouble(&|trouble, stage| trouble.a_second_proxy(stage))
        }),
        Check::new("a_missing_role_is_named_and_kubectl_works_once_it_is_there", || {
            with_trouble(&|trouble, stage| trouble.without_a_role(stage))
        }),
        Check::new("an_expired_token_is_named_and_kubectl_works_with_the_next", || {
            with_trouble(&|trouble, stage| trouble.with_an_expired_token(stage))
        }),
        Check::new("an_agent_that_is_gone_is_named_and_kubectl_works_once_it_is_back", || {
            with_trouble(&|trouble, stage| trouble.without_an_agent(stage))
        }),
        Check::new("a_relay_that_is_gone_is_named_and_kubectl_works_once_it_is_back", || {
            with_trouble(&|trouble, stage| trouble.without_a_relay(stage))
        }),
        Check::new("an_apiserver_that_is_gone_is_named_and_kubectl_works_once_it_is_back", || {
            with_trouble(&|trouble, stage| trouble.without_an_apiserver(stage))
        }),
        Check::new("the_agent_runs_in_a_pod_with_the_least_rights", || pod::run(&*stage.try_borrow()?)),
        Check::new("the_chart_installs_upgrades_and_leaves_the_cluster_its_identity", || {
            chart::run(&*stage.try_borrow()?)
        }),
        Check::new("agent_and_client_get_out_by_nat_and_by_squid_or_say_why_not", || {
            let mut stage = stage.try_borrow_mut()?;
            let say = |row: &egress::Row| println!("{}", row.print());
            let rows = egress::run(&mut stage, runtime.handle(), false, |row| row.quick, say)?;
            let wrong: Vec<String> =
                rows.iter().filter(|row| !row.is_as_expected()).map(egress::Row::print).collect();
            ensure!(wrong.is_empty() && !rows.is_empty(), "{}", wrong.join("\n"));
            Ok(())
        }),
        Check::new("sigterm_ends_relay_and_agent_well", || {
            with_trouble(&|_, stage| bad_days::ends_when_told(stage))
        }),
        Check::new("t39_five_rounds_of_kill_9_under_load_leave_nothing_behind", || {
            let mut stage = stage.try_borrow_mut()?;
            let findings = kill::run(&mut stage, 5, 7, false, |line| println!("{line}"))?;
            ensure!(findings.faults.is_empty(), "{}", findings.faults.join("\n"));
            ensure!(findings.cut > 0, "nothing was cut");
            ensure!(findings.survived > 0, "nothing went on");
            Ok(())
        }),
        Check::new("streams_outlive_a_relay_that_is_killed_again_and_again", || {
            resume::survives(&mut *stage.try_borrow_mut()?, resume::DEATHS)
        }),
    ];
    let _entered = runtime.enter();
    Ok(suite::run(checks, |line| println!("{line}")))
}
