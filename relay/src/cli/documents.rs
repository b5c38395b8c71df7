//! `towline-relay role trust-key | distrust-key | keys | documents | put | withdraw`: what organisations sign about roles.

use std::{fs, path::PathBuf, time::SystemTime};

use clap::Args;
use data_encoding::BASE64;
use serde_json::json;
use towline_tunnel::{
    fault::{Fault, Report},
    keys::VerifyingKey,
    role::{DocumentId, Finding, SignedDocument, Statement, parse_key, print_key},
};

use super::{Format, Place, print, print_json, table};
use crate::{
    registry::{Registry, Stored},
    values::moment,
};

#[derive(Args, Debug)]
pub(super) struct Key {
    /// The public key, as `towline role key new` prints it
    #[arg(value_name = "PUBLIC_KEY", value_parser = key)]
    key: VerifyingKey,
    #[command(flatten)]
    place: Place,
}

fn key(text: &str) -> Result<VerifyingKey, String> {
    parse_key(text).map_err(|error| format!("{error}: it is printed by `towline role key new`"))
}

impl Key {
    pub(super) async fn trust(self, now: SystemTime) -> Result<(), Report> {
        let said = match self.place.registry().await?.trust_key(&self.key, now).await? {
            Some(true) => "trusted from now on",
            Some(false) => "was trusted already",
            None => {
                let what = "there are as many organisation keys as there may be: distrust one first";
                return Err(Report::new(Fault::ConfigInvalid, what));
            }
        };
        print(&format!("{} ({said})", print_key(&self.key)))
    }

    pub(super) async fn distrust(self) -> Result<(), Report> {
        if self.place.registry().await?.distrust_key(&self.key).await? {
            print(&format!("{} (no longer trusted)", print_key(&self.key)))
        } else {
            Err(Report::new(Fault::ConfigInvalid, format!("{} is not trusted", print_key(&self.key))))
        }
    }
}

/// `towline-relay role keys`.
pub(super) fn keys(registry: &Registry) -> Result<(), Report> {
    let known = registry.snapshot();
    let keys: Vec<_> = known.documents().keys().iter().map(print_key).collect();
    if keys.is_empty() { Ok(()) } else { print(&keys.join("\n")) }
}

#[derive(Args, Debug)]
pub(super) struct List {
    #[command(flatten)]
    place: Place,
    /// How
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

impl List {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let known = registry.snapshot();
        let documents = known.documents().all();
        match self.output {
            Format::Table => {
                let rows: Vec<_> = documents.iter().map(|signed| row(signed, now)).collect();
                print(&table(["ID", "WHAT", "WHERE", "EXPIRES"], &rows))
            }
            Format::Json => {
                let items: Vec<_> = documents
                    .iter()
                    .map(|signed| {
                        let [id, what, place, _] = row(signed, now);
                        json!({
                            "id": id, "what": what, "where": place,
                            "expiresAt": signed.document().expires.map(moment),
                            "document": BASE64.encode(signed.bytes()),
                        })
                    })
                    .collect();
                print_json(&items)
            }
        }
    }
}

fn row(signed: &SignedDocument, now: SystemTime) -> [String; 4] {
    let document = signed.document();
    let (what, place) = match &document.statement {
        Statement::Assignment { subject, role, scope } => (format!("{subject}: {role}"), scope.to_string()),
        Statement::Placement { cluster, group } => (format!("cluster {cluster}"), format!("group:{group}")),
        Statement::Removal { of } => (format!("removal of {of}"), String::new()),
    };
    let ends = document.expires.map_or_else(|| "never".to_owned(), moment);
    let ended = document.standing(now) == Finding::Ended;
    [document.id.to_string(), what, place, if ended { format!("{ends} (ended)") } else { ends }]
}

#[derive(Args, Debug)]
pub(super) struct Put {
    /// Documents in base64, one a line
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    place: Place,
}

impl Put {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        let named = self.file.display();
        let text = fs::read_to_string(&self.file)
            .map_err(|error| Report::caused_by(Fault::FileUnreadable, named.to_string(), error))?;
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let wrong = |why: String| Report::new(Fault::RoleDocumentRefused, format!("{named}: {why}"));
            let bytes = BASE64.decode(line.as_bytes()).map_err(|_| wrong("a line is not base64".into()))?;
            let signed = SignedDocument::read(bytes.into()).map_err(|error| wrong(error.to_string()))?;
            let known = registry.snapshot();
            let signer = signed.signer(known.documents().keys());
            let signer =
                signer.ok_or_else(|| wrong("no organisation key that is trusted has signed it".into()))?;
            let said = match registry.store_document(&signed, signer, "", now).await? {
                Stored::New => "taken",
                Stored::Known => "was there already",
                Stored::Removed => "removed what it names",
                Stored::NothingToRemove => "what it names was not there",
                Stored::Refused(why) => return Err(wrong(why.into())),
            };
            print(&format!("{} ({said})", signed.document().id))?;
        }
        Ok(())
    }
}

#[derive(Args, Debug)]
pub(super) struct Withdraw {
    /// The document's id
    #[arg(value_name = "ID")]
    id: DocumentId,
    #[command(flatten)]
    place: Place,
}

impl Withdraw {
    pub(super) async fn run(self, now: SystemTime) -> Result<(), Report> {
        let registry = self.place.registry().await?;
        if registry.withdraw_document(self.id, "", now).await? {
            print(&format!("{} (withdrawn)", self.id))
        } else {
            Err(Report::new(Fault::RoleDocumentUnknown, self.id.to_string()))
        }
    }
}
