//! What is handed over to somebody who is to help: findings, settings, versions and log in one file, without secrets.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use serde_json::{Value, json};
use towline_tunnel::{
    doctor::{Diagnosis, Ink, explained, line},
    fault::{Fault, Report},
};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use super::{PROGRAM, redact};

/// What goes into it.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    /// What was found.
    pub diagnosis: &'a Diagnosis,
    /// The settings in effect: names, addresses and paths, never what a file holds.
    pub config: Value,
    /// What was logged meanwhile.
    pub log: String,
    /// Secrets that are known, and stand nowhere in it.
    pub secrets: &'a [&'a str],
}

impl Bundle<'_> {
    /// Writes it to a new file of mode 0600.
    ///
    /// # Errors
    /// If the file is there already, or can't be written.
    pub fn write(&self, path: &Path) -> Result<(), Report> {
        let failed = |error: io::Error| {
            Report::caused_by(Fault::FileUnwritable, format!("{}: {error}", path.display()), error)
        };
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
        self.fill(ZipWriter::new(file)).map_err(|error| {
            // Half of it is of no use to anybody.
            let _gone = fs::remove_file(path);
            failed(error)
        })
    }

    fn fill(&self, mut zip: ZipWriter<fs::File>) -> io::Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Deflated)
            .unix_permissions(0o600);
        for (name, text) in self.files() {
            zip.start_file(name, options).map_err(io::Error::other)?;
            zip.write_all(redact(&text, self.secrets).as_bytes())?;
        }
        zip.finish().map_err(io::Error::other)?.sync_all()
    }

    fn files(&self) -> [(&'static str, String); 5] {
        let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
        let versions = json!({
            "program": PROGRAM,
            "system": std::env::consts::OS,
            "architecture": std::env::consts::ARCH,
        });
        [
            ("doctor.json", self.diagnosis.to_json() + "\n"),
            ("doctor.txt", text(self.diagnosis)),
            ("config.json", pretty(&self.config)),
            ("versions.json", pretty(&versions)),
            ("log.txt", self.log.clone()),
        ]
    }
}

fn text(diagnosis: &Diagnosis) -> String {
    let lines: String = diagnosis.findings.iter().map(|found| line(found, Ink::Plain) + "\n").collect();
    match diagnosis.first_failed() {
        Some(failed) => format!("{lines}\n{}", explained(failed, Ink::Plain)),
        None => lines,
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::unix::fs::PermissionsExt as _, time::SystemTime};

    use towline_tunnel::doctor::{Examination, Step, Verdict};

    use super::*;

    #[test]
    fn t29_a_bundle_is_its_owners_and_has_no_canary_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.zip");
        let mut examination = Examination::new(|_| {});
        let report = Report::new(Fault::UpgradeRefused, "http://user:canary@proxy answered");
        examination.say(Step::Upgrade, Verdict::<()>::failed(report, "Bearer canary-canary"));
        let diagnosis = examination.finish(PROGRAM, None, SystemTime::UNIX_EPOCH);
        let bundle = Bundle {
            diagnosis: &diagnosis,
            config: json!({ "relay": "https://relay.example", "note": "secret-canary" }),
            log:
                "DEBUG token eyJhbGciOiJub25lIn0.eyJzdWIiOiJjYW5hcnkifQ.canary seen\nthe relay was dialled\n"
                    .into(),
            secrets: &["secret-canary"],
        };
        bundle.write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut zip = zip::ZipArchive::new(fs::File::open(&path).unwrap()).unwrap();
        let mut all = String::new();
        for at in 0..zip.len() {
            zip.by_index(at).unwrap().read_to_string(&mut all).unwrap();
        }
        assert!(!all.contains("canary"), "{all}");
        for kept in ["TL-NET-005", "relay.example", "the relay was dialled", PROGRAM] {
            assert!(all.contains(kept), "{kept}: {all}");
        }
        assert_eq!(bundle.write(&path).unwrap_err().fault, Fault::FileUnwritable, "nothing is written over");
    }
}
