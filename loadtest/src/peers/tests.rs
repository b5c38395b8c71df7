use std::io::Write as _;

use aws_lc_rs::digest::{Context, SHA256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::{far::Verb, pattern::Pattern};

const MEBIBYTE: u64 = 1 << 20;

/// Past the capture of tests' output: what was not tried is to be seen where nothing failed.
fn say(text: &str) {
    let _told = writeln!(std::io::stderr(), "{text}");
}

/// What goes in has the same hash as what comes out, downwards; and upwards, as the far end says.
async fn moves_a_mebibyte(path: &dyn Path) -> anyhow::Result<()> {
    let pattern = Pattern::default();
    let mut expected = Context::new(&SHA256);
    for at in (0..MEBIBYTE).step_by(1024) {
        expected.update(&pattern.at(at)[..1024]);
    }
    let mut down = near::raw(path, Verb::Source(Some(MEBIBYTE))).await?;
    let (mut bytes, mut hash) = (vec![0; 64 << 10], Context::new(&SHA256));
    let mut taken = 0;
    while taken < MEBIBYTE {
        let n = down.read(&mut bytes).await?;
        anyhow::ensure!(n > 0, "the end after {taken} bytes");
        hash.update(&bytes[..n]);
        taken += n as u64;
    }
    anyhow::ensure!(hash.finish().as_ref() == expected.finish().as_ref(), "other bytes");

    let mut echo = near::raw(path, Verb::Echo).await?;
    let sent: Vec<u8> = (0..MEBIBYTE).step_by(1024).flat_map(|at| pattern.at(at)[..1024].to_vec()).collect();
    let mut back = vec![0; sent.len()];
    for (there, here) in sent.chunks(32 << 10).zip(back.chunks_mut(32 << 10)) {
        echo.write_all(there).await?;
        echo.flush().await?;
        echo.read_exact(here).await?;
    }
    anyhow::ensure!(sent == back, "the echo is another");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_peer_that_is_there_carries_a_mebibyte_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let far = FarEnd::start(Certificates::make(folder.path()).unwrap()).await.unwrap();
    for kind in Kind::value_variants() {
        // What takes seconds is fetched; what takes minutes is not built for a test.
        let installed = match kind.peer() {
            Peer::Rathole => Peer::Rathole.find().context(Peer::Rathole.fix()),
            quick => tokio::task::spawn_blocking(move || quick.ensure()).await.unwrap(),
        };
        match installed {
            Err(missing) => say(&format!("NOT TRIED: {} is missing: {missing:#}", kind.name())),
            Ok(installed) => {
                let begun = Instant::now();
                let running = kind.start(&installed, &far).await.unwrap();
                assert!(!running.processes().is_empty());
                timeout(Duration::from_secs(30), moves_a_mebibyte(&running)).await.unwrap().unwrap();
                say(&format!(
                    "{} carried a mebibyte, {:.1} s in all",
                    kind.name(),
                    begun.elapsed().as_secs_f64()
                ));
            }
        }
    }
}

#[tokio::test]
async fn one_that_can_not_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let far = FarEnd::start(Certificates::make(folder.path()).unwrap()).await.unwrap();
    let Some(installed) = Peer::Haproxy.find() else {
        return say("NOT TRIED: haproxy is missing");
    };
    std::fs::write(far.certificates().chain_and_key(), "no certificate").unwrap();
    let error = Kind::HaproxyX1.start(&installed, &far).await.unwrap_err();
    let told = format!("{error:#}");
    assert!(told.contains("haproxy") && told.contains("both.pem"), "{told}");
}
