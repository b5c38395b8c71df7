//! A middlebox that ends outer TLS, lets the upgrade to WebSocket through, and then swallows what it does not like. Other
//! requests pass, as HTTP/1.1 or HTTP/2, untouched.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use anyhow::Context as _;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{
    TlsAcceptor, TlsConnector,
    rustls::{
        ClientConfig, RootCertStore, ServerConfig,
        crypto::aws_lc_rs::default_provider,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

use xtask::peers::running::certificate;

use super::{route::Route, script};
use crate::stage::Stage;

/// Longer messages are large.
const LARGE: u64 = 1024;
/// RFC 6455, section 5.2.
const BINARY: u8 = 2;
const CONTINUATION: u8 = 0;

/// What becomes of WebSocket frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Swallows {
    /// All that go to the relay are lost.
    Up,
    /// All that come from it.
    Down,
    /// Those of more than 1 KiB, in both directions.
    Large,
    /// Binary ones, in both directions.
    Binary,
}

/// Which HTTP the middlebox speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP/1.1.
    One,
    /// HTTP/2 as well, if the other wants it.
    Two,
}

/// A way through such a middlebox, whose certificate is known.
///
/// # Errors
/// If it can't be started.
pub(super) fn route(
    stage: &Stage,
    folder: &Path,
    swallows: Swallows,
    speaks: Speaks,
) -> anyhow::Result<Route> {
    let (ca, both) = certificate(folder)?;
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(stage.relay_dir().join("tls-ca.pem"))? {
        roots.add(root?)?;
    }
    let up = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut down = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(
            CertificateDer::pem_file_iter(&both)?.collect::<Result<_, _>>()?,
            PrivateKeyDer::from_pem_file(&both)?,
        )?;
    down.alpn_protocols = vec![b"http/1.1".to_vec()];
    if speaks == Speaks::Two {
        down.alpn_protocols.insert(0, b"h2".to_vec());
    }
    let relay: SocketAddr = stage.relay_address.parse().context("the relay's address")?;
    let middlebox = Arc::new(Middlebox { relay, up, down: TlsAcceptor::from(Arc::new(down)), swallows });
    let served = script::Served::start(script::free()?, move |client| Arc::clone(&middlebox).serve(client))?;
    Ok(Route::to(format!("https://{}", served.address())).certified_by(ca).holding(served))
}

struct Middlebox {
    relay: SocketAddr,
    up: ClientConfig,
    down: TlsAcceptor,
    swallows: Swallows,
}

impl Middlebox {
    async fn serve(self: Arc<Self>, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let mut client = self.down.accept(client).await?;
        let protocol = client.get_ref().1.alpn_protocol().map(<[u8]>::to_vec);
        let mut up = self.up.clone();
        up.alpn_protocols.extend(protocol.clone());
        let tcp = TcpStream::connect(self.relay).await?;
        tcp.set_nodelay(true)?;
        let name = ServerName::IpAddress(self.relay.ip().into());
        let mut relay = TlsConnector::from(Arc::new(up)).connect(name, tcp).await?;
        if protocol.as_deref() == Some(b"h2") {
            return tokio::io::copy_bidirectional(&mut client, &mut relay).await.map(drop);
        }
        let asked = head(&mut client).await?;
        relay.write_all(&asked).await?;
        relay.flush().await?;
        if !asked.to_ascii_lowercase().windows(18).any(|field| field == b"upgrade: websocket") {
            return tokio::io::copy_bidirectional(&mut client, &mut relay).await.map(drop);
        }
        let answered = head(&mut relay).await?;
        client.write_all(&answered).await?;
        client.flush().await?;
        let (from_client, to_client) = tokio::io::split(client);
        let (from_relay, to_relay) = tokio::io::split(relay);
        tokio::try_join!(
            frames(from_client, to_relay, self.swallows, Swallows::Up),
            frames(from_relay, to_client, self.swallows, Swallows::Down),
        )
        .map(drop)
    }
}

/// A message's head, with its end.
async fn head(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(from.read_u8().await?);
        if head.len() > 16 * 1024 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(head)
}

/// Passes frames on in one direction, but for those that are swallowed.
async fn frames(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    swallows: Swallows,
    direction: Swallows,
) -> io::Result<()> {
    loop {
        let mut header = vec![0; 2];
        from.read_exact(&mut header).await?;
        let extended = match header[1] & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if header[1] & 0x80 == 0 { 0 } else { 4 };
        let fixed = header.len();
        header.resize(fixed + extended + mask, 0);
        from.read_exact(&mut header[fixed..]).await?;
        let length = match extended {
            0 => u64::from(header[1] & 0x7f),
            _ => header[2..2 + extended].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        let lost = match swallows {
            Swallows::Large => length > LARGE,
            Swallows::Binary => matches!(header[0] & 0x0f, BINARY | CONTINUATION),
            one_way => one_way == direction,
        };
        let mut payload = (&mut from).take(length);
        if lost {
            tokio::io::copy(&mut payload, &mut tokio::io::sink()).await?;
        } else {
            to.write_all(&header).await?;
            tokio::io::copy(&mut payload, &mut to).await?;
            to.flush().await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame of so many bytes, masked as a client's are.
    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = vec![0x80 | kind];
        match length {
            0..126 => frame.push(0x80 | u8::try_from(length).unwrap()),
            _ => {
                frame.push(0x80 | 126);
                frame.extend(u16::try_from(length).unwrap().to_be_bytes());
            }
        }
        frame.extend([1, 2, 3, 4]);
        frame.extend(vec![7; length]);
        frame
    }

    #[tokio::test]
    async fn what_is_swallowed_is_lost_and_the_rest_arrives_as_it_was() {
        let (small, large, ping) = (frame(BINARY, 100), frame(BINARY, 2000), frame(9, 4));
        let sent = [&small[..], &large, &ping, &small].concat();
        let (up, down) = (Swallows::Up, Swallows::Down);
        for (swallows, direction, arrives) in [
            (Swallows::Up, up, Vec::new()),
            (Swallows::Up, down, sent.clone()),
            (Swallows::Down, down, Vec::new()),
            (Swallows::Large, up, [&small[..], &ping, &small].concat()),
            (Swallows::Binary, down, ping.clone()),
        ] {
            let mut came = Vec::new();
            let _end_of_input = frames(&sent[..], &mut came, swallows, direction).await;
            assert!(came == arrives, "{swallows:?} {direction:?}: {} bytes", came.len());
        }
    }
}
