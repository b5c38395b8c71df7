//! The way out through proxies as they are in the field: squid and tinyproxy, fetched into the cache where they are not installed.
#![allow(clippy::unwrap_used, reason = "a test that fails here says where")]

mod proxies {
    pub(super) mod running;
}

use std::{fs, io::Write as _, net::SocketAddr, time::Duration};

use md5::{Digest as _, Md5};
use proxies::running::{Running, squid, tinyproxy};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;
use towline_tunnel::{
    egress::{Destination, Egress, EgressSettings, ProxyArgs, SkipRange, Sources},
    fault::{Fault, Report},
};

/// With characters that a URL must encode and a helper's line must not be broken by.
const LOGIN: &str = "me:p%40%20%25%3A%22w@";
const PASSWORD: &str = "p@ %:\"w";

/// A server that gives back what it is sent.
struct Echo {
    at: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

impl Echo {
    async fn on(address: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = io.split();
                    let _ended = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        }));
        Self { at, _task: task }
    }

    fn named(&self, host: &str) -> Destination {
        Destination::new(host, self.at.port())
    }
}

fn egress(args: ProxyArgs) -> Egress {
    let sources =
        Sources { flags: &args, written: None, environment: &|_| None, never: SkipRange::default() };
    Egress::new(EgressSettings::resolve(&sources).unwrap()).unwrap()
}

fn through(proxy: String) -> ProxyArgs {
    ProxyArgs { proxy_https: Some(proxy.into()), ..ProxyArgs::default() }
}

fn http(login: &str, proxy: &Running) -> Egress {
    egress(through(format!("http://{login}{}", proxy.address())))
}

/// Sends a megabyte there and back.
async fn echoes(egress: &Egress, to: &Destination) -> Result<(), Report> {
    let stream = egress.connect(to, Instant::now() + Duration::from_secs(10)).await?;
    let sent: Vec<u8> = (0..1_u32 << 20).map(|n| (n % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let mut came = vec![0; sent.len()];
    let all = async {
        write.write_all(&sent).await?;
        // TLS to a proxy keeps the last of it until then.
        write.flush().await
    };
    let (wrote, got) = tokio::join!(all, read.read_exact(&mut came));
    wrote.unwrap();
    got.unwrap();
    assert!(came == sent, "what comes back is what was sent");
    Ok(())
}

async fn fault(egress: &Egress, to: &Destination) -> (Fault, String) {
    let report = echoes(egress, to).await.expect_err("there is no way");
    let said = report.to_string();
    assert!(!said.contains(PASSWORD) && !said.contains("p%40"), "{said}");
    (report.fault, said)
}

/// Where the proxy can't be had, that is said past the capture of tests' output, and nothing is tried.
fn there(made: anyhow::Result<Running>) -> Option<Running> {
    made.map_err(|missing| {
        let _told = writeln!(std::io::stderr(), "NOT TRIED: {missing:#}");
    })
    .ok()
}

#[tokio::test]
async fn an_open_squid_carries_names_and_addresses_of_both_families() {
    let Some(proxy) = there(squid(|_| "http_access allow CONNECT\n".to_owned())) else { return };
    let (four, six) = (Echo::on("127.0.0.1").await, Echo::on("::1").await);
    let egress = http("", &proxy);
    echoes(&egress, &four.named("127.0.0.1")).await.unwrap();
    echoes(&egress, &six.named("::1")).await.unwrap();
    // Of those that only the proxy resolves, this one is in everybody's hosts file.
    echoes(&egress, &four.named("localhost")).await.unwrap();

    let (dead, said) = fault(&egress, &Destination::new("127.0.0.1", 1)).await;
    assert_eq!(dead, Fault::ProxyFailed, "{said}");
    assert!(said.contains("127.0.0.1:1") && said.contains("ERR_CONNECT_FAIL"), "{said}");
    let (unknown, said) = fault(&egress, &Destination::new("no-such-host.invalid", 443)).await;
    assert_eq!(unknown, Fault::ProxyFailed, "{said}");
}

#[tokio::test]
async fn squid_lets_in_by_basic_and_by_digest_and_refuses_what_is_wrong() {
    let echo = Echo::on("127.0.0.1").await;
    let to = echo.named("127.0.0.1");
    // What squid's helpers are asked, and what they know (squid encodes what would end a word of their line, and no more).
    let basic = r#"while read -r user password; do
        if [ "$user $password" = 'me p@%20%25:%22w' ]; then echo OK; else echo ERR; fi
    done"#;
    let secret = format!("me:towline:{PASSWORD}");
    let secret: String = Md5::digest(secret.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = format!(
        r#"while read -r question; do
        if [ "$question" = '"me":"towline"' ]; then echo 'OK ha1="{secret}"'; else echo ERR; fi
    done"#
    );
    for (scheme, helper) in [("basic", basic), ("digest", digest.as_str())] {
        let made = squid(|folder| {
            let path = folder.join("helper");
            fs::write(&path, format!("#!/bin/sh\n{helper}\n")).unwrap();
            Running::executable(&path);
            format!(
                "auth_param {scheme} program {}\nauth_param {scheme} realm towline\nauth_param {scheme} children 1\n\
                 acl known proxy_auth REQUIRED\nhttp_access allow CONNECT known\n",
                path.display()
            )
        });
        let Some(proxy) = there(made) else { return };
        let known = http(LOGIN, &proxy);
        for _ in 0..3 {
            echoes(&known, &to).await.unwrap();
        }
        let mut from_file = through(format!("http://{}", proxy.address()));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), format!("me:{PASSWORD}\n")).unwrap();
        from_file.proxy_credentials_file = Some(file.path().to_owned());
        echoes(&egress(from_file), &to).await.unwrap();

        let (missing, said) = fault(&http("", &proxy), &to).await;
        assert_eq!(missing, Fault::ProxyCredentialsMissing, "{said}");
        assert!(said.to_lowercase().contains(&format!("it offers {scheme}")), "{said}");
        for wrong in ["me:wrong@", "you:wrong@"] {
            let (refused, said) = fault(&http(wrong, &proxy), &to).await;
            assert_eq!(refused, Fault::ProxyCredentialsRefused, "{said}");
        }
    }
}

#[tokio::test]
async fn what_squid_forbids_is_named_and_what_is_skipped_does_not_ask_it() {
    let echo = Echo::on("127.0.0.1").await;
    let Some(proxy) = there(squid(|_| String::new())) else { return };
    let (forbidden, said) = fault(&http("", &proxy), &echo.named("127.0.0.1")).await;
    assert_eq!(forbidden, Fault::ProxyForbids, "{said}");
    assert!(
        said.contains("ERR_ACCESS_DENIED") && said.contains(&echo.named("127.0.0.1").to_string()),
        "{said}"
    );

    let url = format!("http://{}", proxy.address());
    let skipping = ProxyArgs { proxy_skip_range: Some("127.0.0.0/8".to_owned()), ..through(url.clone()) };
    echoes(&egress(skipping), &echo.named("127.0.0.1")).await.unwrap();
    let (none, args) =
        (SkipRange::default(), ProxyArgs { proxy_https: Some(url.into()), ..ProxyArgs::default() });
    let environment = |name: &str| (name == "NO_PROXY").then(|| format!("127.0.0.1:{}", echo.at.port()));
    let sources = Sources { flags: &args, written: None, environment: &environment, never: none };
    let by_environment = Egress::new(EgressSettings::resolve(&sources).unwrap()).unwrap();
    echoes(&by_environment, &echo.named("127.0.0.1")).await.unwrap();
    assert_eq!(fault(&by_environment, &Destination::new("127.0.0.1", 1)).await.0, Fault::ProxyForbids);
}

#[tokio::test]
async fn a_proxy_that_is_spoken_to_by_tls_is_trusted_by_its_authority_only() {
    let echo = Echo::on("127.0.0.1").await;
    let certificate = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let authority = tempfile::NamedTempFile::new().unwrap();
    fs::write(authority.path(), certificate.cert.pem()).unwrap();
    let made = proxies::running::squid_with_tls(
        certificate.cert.pem() + &certificate.signing_key.serialize_pem(),
        "http_access allow CONNECT\n",
    );
    let Some(proxy) = there(made) else { return };
    let url = |host: &str| format!("https://{host}:{}", proxy.address().port());
    let trusting = |host: &str| {
        egress(ProxyArgs { proxy_cert: Some(authority.path().to_owned()), ..through(url(host)) })
    };
    echoes(&trusting("localhost"), &echo.named("127.0.0.1")).await.unwrap();
    let (misnamed, said) = fault(&trusting("127.0.0.1"), &echo.named("127.0.0.1")).await;
    assert_eq!(misnamed, Fault::ProxyCertificateUntrusted, "{said}");
    let (untrusted, said) = fault(&egress(through(url("localhost"))), &echo.named("127.0.0.1")).await;
    assert_eq!(untrusted, Fault::ProxyCertificateUntrusted, "{said}");
    let plain = egress(through(format!("http://localhost:{}", proxy.address().port())));
    let (not_http, said) = fault(&plain, &echo.named("127.0.0.1")).await;
    assert!(matches!(not_http, Fault::ProxyNotHttp | Fault::ProxyCut), "{said}");
}

#[tokio::test]
async fn tinyproxy_carries_asks_who_it_is_and_keeps_to_its_ports() {
    let (four, six) = (Echo::on("127.0.0.1").await, Echo::on("::1").await);
    let Some(open) = there(tinyproxy("")) else { return };
    let egress = http("", &open);
    echoes(&egress, &four.named("127.0.0.1")).await.unwrap();
    echoes(&egress, &six.named("::1")).await.unwrap();
    let (dead, said) = fault(&egress, &Destination::new("127.0.0.1", 1)).await;
    assert_eq!(dead, Fault::ProxyFailed, "{said}");

    let Some(narrow) = there(tinyproxy("ConnectPort 443\n")) else { return };
    let (forbidden, said) = fault(&http("", &narrow), &four.named("127.0.0.1")).await;
    assert_eq!(forbidden, Fault::ProxyForbids, "{said}");

    let Some(asking) = there(tinyproxy("BasicAuth me pw\n")) else { return };
    echoes(&http("me:pw@", &asking), &four.named("127.0.0.1")).await.unwrap();
    let (missing, said) = fault(&http("", &asking), &four.named("127.0.0.1")).await;
    assert_eq!(missing, Fault::ProxyCredentialsMissing, "{said}");
    let (refused, said) = fault(&http("me:wrong@", &asking), &four.named("127.0.0.1")).await;
    assert_eq!(refused, Fault::ProxyCredentialsRefused, "{said}");
}
