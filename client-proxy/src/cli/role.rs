//! `towline role`: who has which role inside which clusters, as the organisation's key signs it.

mod list;
mod names;

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime},
};

use clap::{Args, Subcommand};
use data_encoding::BASE64;
use towline_tunnel::{
    fault::{Fault, Report},
    keys::VerifyingKey,
    role::{
        Document, DocumentId, GroupPath, RoleName, SignedDocument, Statement, Subject, parse_key, print_key,
        question::{LIST, ListQuestion, PUT, PutAnswer, PutQuestion},
    },
    session::question::Topic,
    values::duration,
};

use super::{AtRelay, Output, login, profile::Profile, say};
use crate::{
    login::LoginTable,
    role::{Asked, Signer, explain},
    token::Purpose,
};
pub(crate) use list::List;
use names::{ClusterArgument, ScopeArgument};

/// Roles inside clusters, signed by the organisation's key, which no relay has.
#[derive(Debug, Subcommand)]
pub enum RoleCommand {
    /// Make or look at an organisation key.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Give somebody a role on the organisation, a group of clusters, or a cluster.
    Assign(Assign),
    /// Say which group of the organisation a cluster is in.
    Place(Place),
    /// List the documents at the relay: those that name you, and all placements.
    List(List),
    /// Take back an assignment or a placement.
    Remove(Remove),
    /// Say which role somebody has on a cluster, by which document, and what the others lack.
    Explain(Explain),
}

/// An organisation key.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a new one, in a file that only you can read; prints the public key, which relays and agents are told.
    New {
        /// Where the private key goes; the file must not be there.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Print the public key of a private one.
    Show {
        /// The private key's file.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
}

/// Who signs, and where the document goes.
#[derive(Args, Clone, Debug)]
pub(crate) struct Signing {
    /// The organisation's private key (PKCS#8 PEM, mode 0600).
    #[arg(long, value_name = "FILE", required_unless_present = "sign_command")]
    key: Option<PathBuf>,
    /// A program that signs, such as one of an HSM: gets the bytes on standard input, prints the Ed25519 signature in base64. No shell reads it.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "key", requires = "public_key")]
    sign_command: Option<PathBuf>,
    /// An argument of that program; may be repeated.
    #[arg(long, value_name = "ARG", requires = "sign_command", allow_hyphen_values = true)]
    sign_argument: Vec<OsString>,
    /// The public key whose signature it makes.
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    public_key: Option<VerifyingKey>,
    /// Append the signed document to this file (base64, one a line; - prints it), for `towline-relay role put`, and tell no relay.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    at: AtRelay,
}

/// Arguments of `towline role assign`.
#[derive(Args, Clone, Debug)]
pub struct Assign {
    #[command(flatten)]
    subject: OneSubject,
    /// What they may do: viewer, writer, admin or cluster-admin; cluster-user only opens the way.
    #[arg(long)]
    role: RoleName,
    /// Where: organisation, group:PATH (such as group:eu/retail), cluster:ID, or cluster:NAME by a name in the profile.
    #[arg(long)]
    scope: ScopeArgument,
    /// End it after this time. A relay that withholds a removal can't withhold this.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    expires_in: Option<Duration>,
    #[command(flatten)]
    signing: Signing,
}

/// Whom a document is for; one of them is needed.
#[derive(Args, Clone, Debug)]
#[group(required = true, multiple = false)]
struct OneSubject {
    /// One user: the issuer, `#` and the token's subject.
    #[arg(long, value_parser = principal)]
    principal: Option<String>,
    /// One user of the profile's identity provider, by the token's subject (`sub`; Entra: `oid`).
    #[arg(long, value_name = "SUBJECT", value_parser = name)]
    user: Option<String>,
    /// All in a group, as the clusters' agents name it (and the relay, which must name it the same).
    #[arg(long, value_parser = name)]
    group: Option<String>,
}

/// The same, where nobody in particular may be meant.
#[derive(Args, Clone, Debug)]
#[group(id = "whose", multiple = false)]
struct SubjectArgument {
    /// Only of this user: the issuer, `#` and the token's subject.
    #[arg(long, value_parser = principal)]
    principal: Option<String>,
    /// Only of this user of the profile's identity provider, by the token's subject (`sub`; Entra: `oid`).
    #[arg(long, value_name = "SUBJECT", value_parser = name)]
    user: Option<String>,
    /// Only of this group, as agents name it.
    #[arg(long, value_parser = name)]
    group: Option<String>,
}

impl SubjectArgument {
    fn subject(self, profile: &Profile) -> Result<Option<Subject>, Report> {
        let principal = match (self.principal, self.user) {
            (Some(principal), _) => Some(principal),
            (None, Some(user)) => {
                let issuer = profile.login.as_ref().and_then(LoginTable::issuer);
                Some(names::principal(&user, profile, issuer)?)
            }
            (None, None) => None,
        };
        Ok(principal.map(Subject::Principal).or(self.group.map(Subject::Group)))
    }
}

/// Arguments of `towline role place`.
#[derive(Args, Clone, Debug)]
pub struct Place {
    /// The cluster's id, or a name in the profile.
    #[arg(long, value_name = "CLUSTER")]
    cluster: ClusterArgument,
    /// The path of the group, such as eu/retail.
    #[arg(long, value_name = "PATH")]
    in_group: GroupPath,
    /// End it after this time; the cluster is then in no group.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    expires_in: Option<Duration>,
    #[command(flatten)]
    signing: Signing,
}

/// Arguments of `towline role remove`.
#[derive(Args, Clone, Debug)]
pub struct Remove {
    /// The document's id.
    #[arg(value_name = "ID")]
    id: DocumentId,
    #[command(flatten)]
    signing: Signing,
}

/// Arguments of `towline role explain`.
#[derive(Args, Clone, Debug)]
pub struct Explain {
    /// Whose role: the issuer, `#` and the token's subject [default: yours, by your cluster token].
    #[arg(long, value_parser = principal)]
    principal: Option<String>,
    /// The same by the token's subject alone, at the profile's identity provider.
    #[arg(long, value_name = "SUBJECT", value_parser = name, conflicts_with = "principal")]
    user: Option<String>,
    /// A group of theirs, as agents name it; may be repeated [default: those of your cluster token, where it is your role].
    #[arg(long, value_parser = name)]
    group: Vec<String>,
    /// The cluster's id, or a name in the profile [default: the profile's, if it has but one].
    #[arg(long, value_name = "CLUSTER")]
    cluster: Option<ClusterArgument>,
    /// The agent's ceiling, if you know it.
    #[arg(long, value_name = "ROLE")]
    max_relay_role: Option<RoleName>,
    /// The organisation's public key: documents of other keys are left out. Without it a relay is believed that all of them are the organisation's.
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    public_key: Option<VerifyingKey>,
    /// The documents, in place of the relay's: base64, one a line, as `--out` writes them.
    #[arg(long, value_name = "FILE")]
    documents: Option<PathBuf>,
    #[command(flatten)]
    at: AtRelay,
}

/// Any other text would be nobody, in silence.
fn principal(text: &str) -> Result<String, String> {
    match text.split_once('#') {
        Some((issuer, subject)) if issuer.contains("://") && !subject.is_empty() => name(text),
        _ => Err("a principal is the issuer's URL, `#` and the `sub` of the token, such as https://idp.example.com#4711".into()),
    }
}

fn name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.trim() != text || text.contains(char::is_control) {
        return Err("it is blank, has white space around it, or a control character in it".into());
    }
    Ok(text.to_owned())
}

fn public_key(text: &str) -> Result<VerifyingKey, String> {
    parse_key(text).map_err(|error| format!("{error}: it is printed by `towline role key new`"))
}

/// Does it.
pub(super) async fn execute(command: RoleCommand) -> Result<ExitCode, Report> {
    let now = SystemTime::now();
    match command {
        RoleCommand::Key(KeyCommand::New { out }) => say(&print_key(&Signer::create(&out)?)),
        RoleCommand::Key(KeyCommand::Show { key }) => say(&print_key(&Signer::open(&key)?.key())),
        RoleCommand::Assign(Assign { subject, role, scope, expires_in, signing }) => {
            let profile = Profile::load(signing.at.profile.as_deref())?;
            let OneSubject { principal, user, group } = subject;
            let subject = SubjectArgument { principal, user, group }.subject(&profile)?;
            let subject = subject.ok_or(Fault::ConfigInvalid)?;
            let statement = Statement::Assignment { subject, role, scope: scope.scope(&profile)? };
            signing.make(Document::new(statement, now, expires_in)).await?;
        }
        RoleCommand::Place(Place { cluster, in_group, expires_in, signing }) => {
            let profile = Profile::load(signing.at.profile.as_deref())?;
            let statement = Statement::Placement { cluster: cluster.id(&profile)?, group: in_group };
            signing.make(Document::new(statement, now, expires_in)).await?;
        }
        RoleCommand::Remove(Remove { id, signing }) => {
            signing.make(Document::new(Statement::Removal { of: id }, now, None)).await?;
        }
        RoleCommand::List(arguments) => arguments.list().await?,
        RoleCommand::Explain(arguments) => say(&arguments.explain(now).await?),
    }
    Ok(ExitCode::SUCCESS)
}

impl Signing {
    fn signer(&self) -> Result<Signer, Report> {
        match (&self.key, &self.sign_command, self.public_key) {
            (Some(path), _, _) => Signer::open(path),
            (None, Some(program), Some(key)) => {
                let (program, arguments) = (program.clone(), self.sign_argument.clone());
                Ok(Signer::Command { program, arguments, key })
            }
            _ => Err(Report::new(
                Fault::ConfigInvalid,
                "--key, or --sign-command with --public-key, is missing",
            )),
        }
    }

    async fn make(&self, document: Document) -> Result<(), Report> {
        let signed = self.signer()?.sign(document).await?;
        let line = BASE64.encode(signed.bytes());
        let id = signed.document().id;
        match &self.out {
            Some(path) if path.as_os_str() == "-" => say(&line),
            Some(path) => {
                append(path, &line)?;
                say(&id.to_string());
            }
            None => {
                let (relay, _profile) = self.at.connect().await?;
                let put = PutQuestion { document: line };
                let answer: Result<PutAnswer, Report> = relay.ask(Topic(PUT), &put).await;
                relay.close().await;
                say(&match answer? {
                    PutAnswer::Stored => format!("{id} (stored)"),
                    PutAnswer::Known => format!("{id} (was stored already)"),
                    PutAnswer::Removed => "removed".to_owned(),
                    PutAnswer::NothingToRemove => {
                        return Err(Report::new(Fault::RoleDocumentUnknown, removed(&signed)));
                    }
                });
            }
        }
        Ok(())
    }
}

/// The id that a removal names.
fn removed(signed: &SignedDocument) -> String {
    removal(signed).map_or_else(String::new, |id| id.to_string())
}

/// More are not asked for: relays keep no more.
const MOST: usize = 10_000;

/// What a relay shows.
async fn shown(at: &AtRelay, own: bool) -> Result<Vec<SignedDocument>, Report> {
    let (relay, _profile) = at.connect().await?;
    let listed: Result<Vec<String>, Report> = relay.list(Topic(LIST), &ListQuestion { own }, MOST).await;
    relay.close().await;
    let wrong = || Report::new(Fault::ProtocolViolation, "the relay listed what is no role document");
    listed?
        .iter()
        .map(|line| {
            let bytes = BASE64.decode(line.as_bytes()).map_err(|_| wrong())?;
            SignedDocument::read(bytes.into()).map_err(|_| wrong())
        })
        .collect()
}

fn append(path: &Path, line: &str) -> Result<(), Report> {
    let written = OpenOptions::new().create(true).append(true).open(path);
    written
        .and_then(|mut file| writeln!(file, "{line}"))
        .map_err(|error| Report::caused_by(Fault::FileUnwritable, path.display().to_string(), error))
}

impl Explain {
    async fn explain(self, now: SystemTime) -> Result<String, Report> {
        let profile = Profile::load(self.at.profile.as_deref())?;
        let cluster = ClusterArgument::or_only(self.cluster.as_ref(), &profile)?;
        let (principal, groups) = self.whose(&profile).await?;
        let mut documents = match &self.documents {
            Some(path) => kept_in(path)?,
            // Auditors see all; others what names them, by which they can explain themselves.
            None => match shown(&self.at, false).await {
                Err(report) if report.fault == Fault::QuestionForbidden => shown(&self.at, true).await?,
                shown => shown?,
            },
        };
        documents.retain(|signed| self.public_key.is_none_or(|key| signed.is_signed_by(&key)));
        let removed: Vec<DocumentId> = documents.iter().filter_map(removal).collect();
        documents.retain(|signed| !removed.contains(&signed.document().id));
        let asked = Asked { principal, groups, cluster, ceiling: self.max_relay_role };
        Ok(explain(&documents, &asked, now))
    }

    /// Whom it is about, with their groups: whoever was named, or who asks.
    async fn whose(&self, profile: &Profile) -> Result<(String, Vec<String>), Report> {
        let named =
            SubjectArgument { principal: self.principal.clone(), user: self.user.clone(), group: None };
        if let Some(Subject::Principal(principal)) = named.subject(profile)? {
            return Ok((principal, self.group.clone()));
        }
        let who = login::own(profile, &self.at, Purpose::Cluster).await?;
        let principal = who.principal(profile.login.as_ref().and_then(LoginTable::issuer));
        let unnamed = "the cluster token names nobody: give --principal ISSUER#SUBJECT";
        let principal = principal.ok_or_else(|| Report::new(Fault::ConfigInvalid, unnamed))?;
        let groups = if self.group.is_empty() { who.group_names } else { self.group.clone() };
        if self.group.is_empty() && !groups.is_empty() {
            tracing::info!(
                groups = groups.join(", "),
                "groups are taken as the token has them: where agents put a prefix before them, give --group"
            );
        }
        Ok((principal, groups))
    }
}

/// What stands in a file.
fn kept_in(path: &Path) -> Result<Vec<SignedDocument>, Report> {
    let named = path.display().to_string();
    let text = fs::read_to_string(path)
        .map_err(|error| Report::caused_by(Fault::FileUnreadable, named.clone(), error))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let read = |line: &str| {
        let wrong = |why: String| Report::new(Fault::FileUnreadable, format!("{named}: {why}"));
        let bytes = BASE64.decode(line.as_bytes()).map_err(|_| wrong("a line is not base64".into()))?;
        SignedDocument::read(bytes.into()).map_err(|error| wrong(error.to_string()))
    };
    lines.map(read).collect()
}

fn removal(signed: &SignedDocument) -> Option<DocumentId> {
    match signed.document().statement {
        Statement::Removal { of } => Some(of),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use towline_tunnel::ids::ClusterId;

    use super::*;
    use crate::cli::{Cli, Command};

    fn parsed(arguments: &[&str]) -> Result<RoleCommand, clap::Error> {
        let cli = Cli::try_parse_from([&["towline", "role"], arguments].concat())?;
        match cli.command {
            Command::Role(command) => Ok(command),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn what_is_signed_here_is_explained_here_and_a_removal_counts() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (key, out) = (path("key.pem"), path("documents"));
        execute(parsed(&["key", "new", "--out", &key]).unwrap()).await.unwrap();
        let public = print_key(&Signer::open(Path::new(&key)).unwrap().key());
        let cluster = ClusterId::of_spki(b"edge").to_string();
        let signed = ["--key", &key, "--out", &out];
        for command in [
            vec!["assign", "--principal", "https://idp#ada", "--role", "writer", "--scope", "group:eu"],
            vec!["place", "--cluster", &cluster, "--in-group", "eu/retail"],
        ] {
            execute(parsed(&[command, signed.to_vec()].concat()).unwrap()).await.unwrap();
        }
        let explained = async |public: &str| {
            let arguments = ["explain", "--principal", "https://idp#ada", "--cluster", &cluster];
            let from = ["--documents", &out, "--public-key", public];
            match parsed(&[&arguments[..], &from].concat()).unwrap() {
                RoleCommand::Explain(arguments) => arguments.explain(SystemTime::now()).await.unwrap(),
                other => panic!("{other:?}"),
            }
        };
        let said = explained(&public).await;
        assert!(said.contains("role: writer"), "{said}");
        let text = fs::read_to_string(&out).unwrap();
        let first = BASE64.decode(text.lines().next().unwrap().as_bytes()).unwrap();
        let id = SignedDocument::read(first.into()).unwrap().document().id.to_string();
        execute(parsed(&[&["remove", &id][..], &signed].concat()).unwrap()).await.unwrap();
        assert!(explained(&public).await.contains("role: none"));
        let other = towline_tunnel::keys::SigningKey::generate().public();
        assert!(explained(&print_key(&other)).await.contains("role: none"));
    }

    #[test]
    fn a_document_needs_a_signer_and_names_that_mean_somebody() {
        let base = ["assign", "--role", "viewer", "--scope", "organisation", "--out", "-"];
        let with = |more: &[&str]| parsed(&[&base[..], more].concat());
        assert!(with(&["--principal", "https://idp#a", "--key", "k"]).is_ok());
        let command = ["--group", "dev", "--sign-command", "hsm", "--sign-argument", "--slot=1"];
        assert!(with(&command).is_err(), "whose signature it is must be said");
        for wrong in [
            &["--principal", "ada", "--key", "k"][..],
            &["--key", "k"],
            &["--principal", "https://idp#a", "--group", "dev", "--key", "k"],
            &["--group", "", "--key", "k"],
            &["--group", "dev"],
        ] {
            assert!(with(wrong).is_err(), "{wrong:?}");
        }
        assert!(parsed(&["assign", "--role", "owner", "--scope", "organisation"]).is_err());
    }
}
