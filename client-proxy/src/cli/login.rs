//! `towline login`, `logout` and `whoami`.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, ValueEnum};
use serde_json::json;
use towline_tunnel::{
    clock::Clock,
    egress::{Egress, ProxyArgs},
    fault::{Fault, Report},
};

use super::{
    AtRelay,
    arguments::{Reach, state_dir},
    profile::Profile,
    say,
    signals::Signals,
};
use crate::{
    inside::{Inside, inside},
    login::{Flow, Prompt, Settings, Store, Who, interactive, log_out},
    token::{Purpose, TokenFile},
};

/// Whose login.
#[derive(Args, Clone, Debug)]
pub struct Whose {
    /// The profile whose `[login]` says where: a file, or a name such as `work` for ~/.config/towline/work.toml [default: profile].
    #[arg(long, value_name = "NAME|FILE", env = "TOWLINE_PROFILE")]
    pub profile: Option<PathBuf>,
    /// Keeps logins, beside the local authority [default: ~/.local/state/towline].
    #[arg(long, value_name = "FOLDER")]
    pub state_dir: Option<PathBuf>,
    /// Outbound proxies.
    #[command(flatten)]
    pub proxies: ProxyArgs,
}

/// Arguments of `towline login`.
#[derive(Args, Clone, Debug)]
pub struct LoginArguments {
    /// Whose login.
    #[command(flatten)]
    pub whose: Whose,
    /// Print the page's address, and leave it to you to go there. It must be a browser on this machine.
    #[arg(long)]
    pub no_browser: bool,
    /// Use codes that you enter on any device.
    #[arg(long)]
    pub device: bool,
    /// Accept tokens with a common audience: the relay can then be you on every cluster that accepts it.
    #[arg(long)]
    pub allow_shared_audience: bool,
}

/// Arguments of `towline whoami`.
#[derive(Args, Clone, Debug)]
pub struct WhoamiArguments {
    /// Whose login.
    #[command(flatten)]
    pub whose: Whose,
    /// Ask this cluster, too, whom its kube-apiserver takes you for: its id, NAME=ID, or a name in the profile.
    #[arg(long, value_name = "CLUSTER")]
    pub cluster: Option<String>,
    /// How to print it.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For scripts.
    Json,
}

impl Whose {
    fn open(&self) -> Result<(Profile, Store), Report> {
        let profile = Profile::load(self.profile.as_deref())?;
        let store = Store::open(&state_dir(self.state_dir.as_ref(), &profile)?)?;
        Ok((profile, store))
    }
}

/// Logs in; Ctrl-C gives it up.
pub(super) async fn login(arguments: LoginArguments) -> Result<ExitCode, Report> {
    let (profile, store) = arguments.whose.open()?;
    let egress = profile.egress(&arguments.whose.proxies)?;
    let mut settings = profile.login(&egress, arguments.allow_shared_audience)?;
    if arguments.device && settings.flow == Flow::Browser {
        settings.flow = Flow::Device;
    }
    let mut signals = Signals::new()?;
    let done = tokio::select! {
        done = log_in(&settings, &store, arguments.no_browser) => done?,
        asked = signals.next() => return Ok(ExitCode::from(asked.exit_code())),
    };
    for who in done {
        say(&who.to_string());
        if settings.is_interactive() && !who.renewable {
            tracing::warn!(
                audience = who.purpose,
                "the provider gave no refresh token: you will have to log in again; ask for the scope offline_access"
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn log_in(settings: &Settings, store: &Store, no_browser: bool) -> Result<Vec<Who>, Report> {
    if settings.is_interactive() {
        let show = |prompt: &Prompt| tell(prompt, no_browser);
        return interactive(settings, store, &show, &Clock::system()).await;
    }
    // There is nothing to keep: this shows that tokens are to be had.
    let mut all = Vec::new();
    for purpose in Purpose::BOTH {
        all.push(Who::look(settings, purpose, store).await?);
    }
    Ok(all)
}

/// Tells a person what to do, on standard error: standard output is for results.
fn tell(prompt: &Prompt, no_browser: bool) {
    let words = match prompt {
        Prompt::Visit { url } => {
            // Detached: whether a browser really opens nobody says.
            let opened = !no_browser && open::that_detached(url).is_ok();
            let done = if opened { "Your browser should open. If it does not, go to" } else { "Go to" };
            format!("{done}\n\n    {url}\n\nand log in; once is enough for both tokens.")
        }
        Prompt::Code { purpose, number, of, url, code, complete } => {
            let place =
                complete.as_ref().map(|complete| format!(" (or straight to {complete})")).unwrap_or_default();
            format!(
                "Code {number} of {of}, for the {}: on any device, go to\n\n    {url}{place}\n\nand enter\n\n    {code}\n",
                purpose.word()
            )
        }
    };
    let mut err = io::stderr().lock();
    let _closed = writeln!(err, "{words}").and_then(|()| err.flush());
}

/// Forgets the login, here and at the provider.
pub(super) async fn logout(arguments: Whose) -> Result<ExitCode, Report> {
    let (profile, store) = arguments.open()?;
    // Whatever audiences it has: it is to go.
    let settings = profile.login(&profile.egress(&arguments.proxies)?, true)?;
    if !settings.is_interactive() {
        say("nothing is kept of this profile's tokens");
        return Ok(ExitCode::SUCCESS);
    }
    for ended in log_out(&settings, &store, &Clock::system()).await? {
        let word = ended.purpose.word();
        match (ended.was_kept, ended.revoked) {
            (false, _) => say(&format!("{word}: nobody was logged in")),
            (true, Ok(true)) => say(&format!("{word}: logged out, and the provider has forgotten it")),
            (true, Ok(false)) => say(&format!("{word}: logged out")),
            (true, Err(report)) => {
                say(&format!("{word}: logged out here"));
                tracing::warn!(%report, "the provider was not told; its refresh token lives until its own end");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Who asks, by the token for one audience: that of the flag, or the profile's.
pub(super) async fn own(profile: &Profile, at: &AtRelay, purpose: Purpose) -> Result<Who, Report> {
    let store = Store::open(&state_dir(at.state_dir.as_ref(), profile)?)?;
    let flag = match purpose {
        Purpose::Relay => at.relay_token_file.clone(),
        Purpose::Cluster => at.cluster_token_file.clone(),
    };
    match flag {
        Some(path) => of_file(&path, purpose),
        None => look(profile, &profile.egress(&at.proxies)?, purpose, &store).await,
    }
}

fn of_file(path: &Path, purpose: Purpose) -> Result<Who, Report> {
    let token = TokenFile::new(path.to_owned(), purpose).token()?;
    Ok(Who::of(purpose, &token, path.display().to_string(), false))
}

/// Says who this profile is.
pub(super) async fn whoami(arguments: WhoamiArguments) -> Result<ExitCode, Report> {
    let (profile, store) = arguments.whose.open()?;
    let egress = profile.egress(&arguments.whose.proxies)?;
    let mut all = Vec::new();
    let mut first = None;
    for purpose in Purpose::BOTH {
        match look(&profile, &egress, purpose, &store).await {
            Ok(who) => all.push(who),
            Err(report) => first = first.or(Some(report)),
        }
    }
    let inside = match (&arguments.cluster, &first) {
        (Some(cluster), None) => Some(arguments.inside(&profile, cluster).await),
        _ => None,
    };
    let (inside, first) = match inside.transpose() {
        Ok(inside) => (inside, first),
        Err(report) => (None, Some(report)),
    };
    match arguments.output {
        Output::Json => {
            let mut all = json!({ "profile": profile.name, "identities": all });
            if let Some(inside) = &inside {
                all["inCluster"] = json!(inside);
            }
            say(&super::json(&all)?);
        }
        Output::Text => {
            all.iter().for_each(|who| say(&who.to_string()));
            inside.iter().for_each(|inside| say(&inside.to_string()));
        }
    }
    first.map_or(Ok(ExitCode::SUCCESS), Err)
}

impl WhoamiArguments {
    /// Whom the cluster's kube-apiserver takes this profile for.
    async fn inside(&self, profile: &Profile, cluster: &str) -> Result<Inside, Report> {
        let at = AtRelay {
            proxies: self.whose.proxies.clone(),
            profile: self.whose.profile.clone(),
            state_dir: self.whose.state_dir.clone(),
            ..AtRelay::default()
        };
        let reach = Reach { at, clusters: vec![cluster.to_owned()], ..Reach::default() };
        inside(&reach.config(profile)?).await
    }
}

async fn look(profile: &Profile, egress: &Egress, purpose: Purpose, store: &Store) -> Result<Who, Report> {
    let file = match purpose {
        Purpose::Relay => profile.relay_token_file.as_ref(),
        Purpose::Cluster => {
            profile.service_account_token_file.as_ref().or(profile.cluster_token_file.as_ref())
        }
    };
    match file {
        Some(path) => of_file(path, purpose),
        None if profile.login.is_some() => Who::look(&profile.login(egress, true)?, purpose, store).await,
        None => Err(Report::new(
            Fault::ConfigInvalid,
            format!("profile {} has neither [login] nor a {}-token-file", profile.name, purpose.word()),
        )),
    }
}
