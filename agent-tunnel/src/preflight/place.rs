//! Where the agent keeps what it must not lose: the data directory, and the Secret beside it.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use towline_tunnel::{
    doctor::Verdict,
    fault::{Fault, Report},
    ids::StreamKey,
};

use crate::{
    app::Config,
    dial::Apiserver,
    state::{DataDir, Membership, Rank, RefusedToken},
};

/// What an agent that ran before has kept of a relay.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Which relay was joined, if one was.
    pub(super) membership: Option<Membership>,
    /// The token that the relay refused last.
    pub(super) refused: Option<RefusedToken>,
}

/// Data directory and Secret; what the Secret says is newer.
pub(super) async fn state(config: &Config, rank: Rank, apiserver: Option<&Apiserver>) -> Verdict<Kept> {
    let found = async {
        takes_files(&config.data_dir)?;
        let mut kept = Kept::default();
        if config.data_dir.is_dir() {
            let dir = DataDir::open(&config.data_dir)?;
            kept = Kept { membership: dir.membership(rank)?, refused: dir.refused(rank) };
        }
        if let Some(secret) = &config.state_secret {
            let apiserver = apiserver.ok_or(Fault::AgentCredential)?;
            let (membership, refused) = secret.kept(apiserver, rank).await?;
            kept = Kept { membership: membership.or(kept.membership), refused: refused.or(kept.refused) };
        }
        Ok(kept)
    };
    let secret =
        config.state_secret.as_ref().map(|secret| format!(", the Secret {} can be read", secret.name()));
    let secret = secret.unwrap_or_default();
    Verdict::of(found.await, |_| format!("{} can be written{secret}", config.data_dir.display()))
}

/// Whether files can be made in a folder, or in the first of its ancestors that is there. None stays.
fn takes_files(folder: &Path) -> Result<(), Report> {
    let there = folder.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let probe = there.join(format!(".towline-preflight-{}", StreamKey::random()));
    let made = || -> io::Result<()> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe)?;
        fs::remove_file(&probe)
    };
    made().map_err(|error| Report::caused_by(Fault::FileUnwritable, there.display().to_string(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_takes_no_files_is_named_and_nothing_is_left_in_one_that_does() {
        let folder = tempfile::tempdir().unwrap();
        takes_files(folder.path()).unwrap();
        takes_files(&folder.path().join("not/there")).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let report = takes_files(Path::new("/proc/nothing/here")).unwrap_err();
        assert_eq!(report.fault, Fault::FileUnwritable);
        assert!(report.detail.contains("/proc"), "{report}");
    }
}
