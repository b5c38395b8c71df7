//! All journeys, most of them on one real cluster: see `suite`.
#![allow(clippy::print_stdout, reason = "it reports as libtest does")]

use std::{
    process::ExitCode,
    sync::{Mutex, PoisonError, RwLock},
};

use anyhow::{Context as _, ensure};
use tokio::runtime::Runtime;
use towline_e2e::{
    access, acting, audit_join,
    bad_days::{self, Trouble},
    blind, blind_run, chart, egress, hostile, identity, kill, pod,
    programs::Programs,
    resume,
    stage::Stage,
    suite::{self, Check},
    table::{self, Selection},
    two_relays,
};
use towline_identity::dev::DevIssuer;
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
    let runtime = Runtime::new()?;
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

/// What all checks use.
struct Theatre<'a> {
    runtime: &'a Runtime,
    cluster: Cluster,
    programs: Programs,
    /// Who writes is alone with it.
    stage: RwLock<Stage>,
    trouble: Mutex<Option<Trouble>>,
}

impl<'a> Theatre<'a> {
    /// A check that does not need the stage.
    fn beside(&'a self, name: &str, run: impl FnOnce() -> anyhow::Result<()> + Send + 'a) -> Check<'a> {
        Check::new(name, move || {
            let _entered = self.runtime.enter();
            run()
        })
    }

    /// A check that leaves the stage as it is.
    fn check(&'a self, name: &str, run: impl FnOnce(&Stage) -> anyhow::Result<()> + Send + 'a) -> Check<'a> {
        Check::new(name, move || {
            // The stage's own tasks (the issuer) run on the runtime; the checks wait outside of it.
            let _entered = self.runtime.enter();
            run(&self.stage.read().unwrap_or_else(PoisonError::into_inner))
        })
    }

    /// One for which programs of the stage end and begin again.
    fn upheaval(
        &'a self,
        name: &str,
        run: impl FnOnce(&mut Stage) -> anyhow::Result<()> + Send + 'a,
    ) -> Check<'a> {
        Check::new(name, move || {
            let _entered = self.runtime.enter();
            run(&mut self.stage.write().unwrap_or_else(PoisonError::into_inner))
        })
    }

    /// One for which they do while somebody uses them.
    fn trouble(
        &'a self,
        name: &str,
        run: impl FnOnce(&Trouble, &mut Stage) -> anyhow::Result<()> + Send + 'a,
    ) -> Check<'a> {
        self.upheaval(name, move |stage| {
            let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            if trouble.is_none() {
                *trouble = Some(Trouble::set(stage)?);
            }
            run(trouble.as_ref().context("it was just set")?, stage)
        })
    }
}

fn all(runtime: &Runtime, stage: Stage) -> anyhow::Result<bool> {
    let (cluster, programs) = (stage.cluster.clone(), stage.programs.clone());
    let theatre =
        Theatre { runtime, cluster, programs, stage: RwLock::new(stage), trouble: Mutex::default() };
    let lanes = vec![of_the_stage(&theatre), of_identity(&theatre), of_the_cluster(&theatre)];
    Ok(suite::run(lanes, alone(&theatre), |line| println!("{line}")))
}

/// The stage's own client, agent and relay.
fn of_the_stage<'a>(theatre: &'a Theatre<'a>) -> Vec<Check<'a>> {
    vec![
        theatre.check("every_case_of_the_table_is_equal_directly_and_through", |stage| {
            let mut lines = Vec::new();
            let rows = table::run(&stage.cluster, Some(stage), &Selection::default(), |row| {
                println!("{}", row.print());
                if !row.is_equal() || !row.is_expected() {
                    lines.push(row.print());
                }
            })?;
            ensure!(lines.is_empty(), "{} of {} rows:\n{}", lines.len(), rows.len(), lines.join("\n"));
            Ok(())
        }),
        theatre.check(
            "every_event_of_a_users_joins_one_line_of_the_agent_and_one_channel_of_the_relay",
            |stage| {
                let joined = audit_join::run(stage)?;
                println!(
                    "{} events, {} requests, {} channels",
                    joined.events, joined.requests, joined.channels
                );
                Ok(())
            },
        ),
        theatre.check("what_is_wrong_from_the_start_is_said_at_the_start", bad_days::wrong_from_the_start),
        theatre.check("files_that_can_not_be_used_are_named_and_left_alone", bad_days::unusable_files),
        theatre.check("run_does_one_command_with_its_exit_code", bad_days::one_command),
        theatre.check("the_kubeconfig_is_left_as_it_came", bad_days::leaves_as_it_came),
        theatre.trouble("a_request_can_be_followed_through_all_logs", |trouble, stage| {
            bad_days::can_be_followed(stage, trouble)
        }),
        theatre.check("t01_t53_kubectl_as_is_what_the_clusters_own_rules_allow", acting::as_somebody_else),
        theatre.check("t01_t11_nothing_hostile_over_http2_reaches_the_real_apiserver", hostile::over_h2::run),
        theatre.trouble("a_second_proxy_for_a_cluster_is_refused", |trouble, stage| {
            trouble.a_second_proxy(stage)
        }),
        theatre.trouble("a_missing_role_is_named_and_kubectl_works_once_it_is_there", |trouble, stage| {
            trouble.without_a_role(stage)
        }),
        theatre.trouble("an_expired_token_is_named_and_kubectl_works_with_the_next", |trouble, stage| {
            trouble.with_an_expired_token(stage)
        }),
        theatre
            .trouble("an_agent_that_is_gone_is_named_and_kubectl_works_once_it_is_back", |trouble, stage| {
                trouble.without_an_agent(stage)
            }),
        theatre
            .trouble("a_relay_that_is_gone_is_named_and_kubectl_works_once_it_is_back", |trouble, stage| {
                trouble.without_a_relay(stage)
            }),
    ]
}

/// Relays and agents of their own.
fn of_identity<'a>(theatre: &'a Theatre<'a>) -> Vec<Check<'a>> {
    vec![
        theatre.beside("each_login_and_kind_of_token_works_and_what_is_open_ends_with_its_right", || {
            let say = |row: &identity::Row| println!("{}", row.print());
            let rows =
                identity::run(&theatre.cluster, &theatre.programs, theatre.runtime.handle(), None, say)?;
            let failed: Vec<String> =
                rows.iter().filter(|row| row.result.is_err()).map(identity::Row::print).collect();
            ensure!(failed.is_empty() && !rows.is_empty(), "{}", failed.join("\n"));
            Ok(())
        }),
        theatre.beside("people_go_on_by_the_second_relay_while_the_first_is_dead", || {
            let issuer = theatre.runtime.block_on(DevIssuer::start(0))?;
            two_relays::run(&theatre.cluster, &theatre.programs, issuer)
        }),
        theatre.beside("the_relay_sees_no_canary_that_is_inside_inner_tls", || {
            let run = theatre.runtime.block_on(blind_run::run(&theatre.cluster, &theatre.programs))?;
            blind::judge(&run.outside, &run.inside, &run.canaries)
        }),
    ]
}

/// Agents in the cluster, and a cluster of their own.
fn of_the_cluster<'a>(theatre: &'a Theatre<'a>) -> Vec<Check<'a>> {
    vec![
        theatre.check("the_agent_runs_in_a_pod_with_the_least_rights", pod::run),
        theatre.check("the_chart_installs_upgrades_and_leaves_the_cluster_its_identity", chart::run),
        theatre.beside(
            "t01_t02_t04_t05_t06_t07_t09_t11_t12_t13_t16_t17_t18_t19_t21_t23_t24_t45_t49_t53_nothing_hostile_reaches_the_real_apiserver",
            || {
                let seen = theatre.runtime.block_on(hostile::run(&theatre.cluster))?;
                println!(
                    "{} hostile requests; {} others, and {} of the agent's own",
                    seen.hostile, seen.sound, seen.own
                );
                Ok(())
            },
        ),
        theatre.beside(
            "the_agents_accounts_have_no_more_rights_than_they_need_and_tokens_can_be_passed_on",
            || access::run(theatre.runtime, &theatre.programs),
        ),
    ]
}

/// What ends programs that all others need, kube-apiserver among them.
fn alone<'a>(theatre: &'a Theatre<'a>) -> Vec<Check<'a>> {
    vec![
        theatre.trouble(
            "an_apiserver_that_is_gone_is_named_and_kubectl_works_once_it_is_back",
            |trouble, stage| trouble.without_an_apiserver(stage),
        ),
        theatre.upheaval("agent_and_client_get_out_by_nat_and_by_squid_or_say_why_not", |stage| {
            let say = |row: &egress::Row| println!("{}", row.print());
            let rows = egress::run(stage, theatre.runtime.handle(), false, |row| row.quick, say)?;
            let wrong: Vec<String> =
                rows.iter().filter(|row| !row.is_as_expected()).map(egress::Row::print).collect();
            ensure!(wrong.is_empty() && !rows.is_empty(), "{}", wrong.join("\n"));
            Ok(())
        }),
        theatre.trouble("sigterm_ends_relay_and_agent_well", |_, stage| bad_days::ends_when_told(stage)),
        theatre.upheaval("t39_five_rounds_of_kill_9_under_load_leave_nothing_behind", |stage| {
            let findings = kill::run(stage, 5, 7, false, |line| println!("{line}"))?;
            ensure!(findings.faults.is_empty(), "{}", findings.faults.join("\n"));
            ensure!(findings.cut > 0, "nothing was cut");
            ensure!(findings.survived > 0, "nothing went on");
            Ok(())
        }),
        theatre.upheaval("streams_outlive_a_relay_that_is_killed_again_and_again", |stage| {
            resume::survives(stage, resume::DEATHS)
        }),
    ]
}
