//! The organisation's key: in a file, or behind a command (an HSM, a KMS) that signs what it is given.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use data_encoding::BASE64;
use tokio::process::Command;
use towline_tunnel::{
    fault::{Fault, Report},
    keys::{SigningKey, VerifyingKey, write_secret},
    role::{Document, SignedDocument},
    session::message::Secret,
};

use crate::login::child::{Failure, ask};

/// Somebody may have to touch a token or answer a question of the command's.
const SIGNED_WITHIN: Duration = Duration::from_secs(120);
/// A signature in base64 has 88 characters; a line end or two are forgiven.
const LONGEST_ANSWER: usize = 256;

/// Who signs.
#[derive(Debug)]
pub enum Signer {
    /// The private key, in a file that only its owner reads.
    File(SigningKey),
    /// A command: gets the bytes to sign on standard input, and prints the signature (Ed25519, RFC 8032) in base64.
    Command {
        /// The program.
        program: PathBuf,
        /// Its arguments. No shell reads them.
        arguments: Vec<OsString>,
        /// Whose signature it must be.
        key: VerifyingKey,
    },
}

fn unsigned(what: impl Into<String>) -> Report {
    Report::new(Fault::RoleNotSigned, what)
}

impl Signer {
    /// A new key in a file that was not there, and its public half.
    ///
    /// # Errors
    /// If the file is there or can't be written.
    pub fn create(path: &Path) -> Result<VerifyingKey, Report> {
        let key = SigningKey::generate();
        write_secret(path, key.to_pem().as_bytes())?;
        Ok(key.public())
    }

    /// The key in a file.
    ///
    /// # Errors
    /// If it is missing, is none, or others than its owner can read it.
    pub fn open(path: &Path) -> Result<Self, Report> {
        // What isn't there is not made here: a mistyped name is not a new key.
        fs::metadata(path).map_err(|error| unsigned(format!("{}: {error}", path.display())))?;
        SigningKey::load_or_create(path).map(Self::File)
    }

    /// Whose signatures it makes.
    pub fn key(&self) -> VerifyingKey {
        match self {
            Self::File(key) => key.public(),
            Self::Command { key, .. } => *key,
        }
    }

    /// Signs a document.
    ///
    /// # Errors
    /// If the command fails, or its signature is not the public key's; or if the document is too long.
    pub async fn sign(&self, document: Document) -> Result<SignedDocument, Report> {
        let signature = match self {
            Self::File(key) => {
                let signed = document.sign(key);
                return SignedDocument::read(signed.bytes().clone())
                    .map_err(|error| unsigned(error.to_string()));
            }
            Self::Command { program, arguments, .. } => {
                signature_of(program, arguments, &document.to_sign()).await?
            }
        };
        document.signed(&signature, &self.key()).map_err(|error| unsigned(error.to_string()))
    }
}

async fn signature_of(program: &Path, arguments: &[OsString], bytes: &[u8]) -> Result<Vec<u8>, Report> {
    let named = program.display();
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let said = ask(&mut command, Some(&Secret::new(bytes)), LONGEST_ANSWER, SIGNED_WITHIN).await;
    let said = said.map_err(|failure| {
        unsigned(match failure {
            Failure::NotRun(error) => format!("{named} can't be run: {error}"),
            Failure::Endless => format!("{named} did not end in time"),
            Failure::Broken(error) => format!("{named}: {error}"),
        })
    })?;
    if !said.status.success() {
        return Err(unsigned(format!("{named} ended with {}: {}", said.status, said.complaint.trim())));
    }
    let text = said.printed.reveal_text().unwrap_or_default().trim();
    BASE64
        .decode(text.as_bytes())
        .map_err(|_| unsigned(format!("{named} printed something else than base64")))
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, time::SystemTime};

    use towline_tunnel::role::{RoleName, Scope, Statement, Subject};

    use super::*;

    fn document() -> Document {
        let statement = Statement::Assignment {
            subject: Subject::Group("platform".into()),
            role: RoleName::Viewer,
            scope: Scope::Organisation,
        };
        Document::new(statement, SystemTime::now(), None)
    }

    #[tokio::test]
    async fn a_new_key_signs_and_a_mistyped_name_makes_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("organisation.pem");
        let public = Signer::create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(Signer::create(&path).is_err(), "no key is ever replaced");
        let signed = Signer::open(&path).unwrap().sign(document()).await.unwrap();
        assert!(signed.is_signed_by(&public));
        let mistyped = folder.path().join("organization.pem");
        assert_eq!(Signer::open(&mistyped).unwrap_err().fault, Fault::RoleNotSigned);
        assert!(!mistyped.exists());
    }

    #[tokio::test]
    async fn a_command_signs_what_it_is_given_and_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let (key, document) = (SigningKey::generate(), document());
        let right = BASE64.encode(&document.clone().sign(&key).bytes()[..64]);
        let script = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        let kept = folder.path().join("to-sign");
        let good = script("good", &format!("cat > '{}'\n[ \"$1\" = 'a b' ] && echo {right}", kept.display()));
        let by = |program, key: &SigningKey| Signer::Command {
            program,
            arguments: vec!["a b".into()],
            key: key.public(),
        };
        let signed = by(good.clone(), &key).sign(document.clone()).await.unwrap();
        assert!(signed.is_signed_by(&key.public()));
        assert_eq!(fs::read(&kept).unwrap(), document.to_sign());
        let other = SigningKey::generate();
        for (program, key) in [
            (good, &other),
            (script("fails", "cat >/dev/null; echo no >&2; exit 3"), &key),
            (script("babbles", "cat >/dev/null; echo hello there"), &key),
            (folder.path().join("missing"), &key),
        ] {
            let report = by(program, key).sign(document.clone()).await.unwrap_err();
            assert_eq!(report.fault, Fault::RoleNotSigned, "{report}");
        }
    }
}
