use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use hickory_resolver::{
    Resolver as Hickory,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
    proto::rr::Name,
};
use tokio::net::UdpSocket;
use tokio_util::task::AbortOnDropHandle;

use super::*;

const A: u16 = 1;
const AAAA: u16 = 28;
const NXDOMAIN: u8 = 3;
const SERVFAIL: u8 = 2;

/// What a name server has for a name and kind.
#[derive(Clone)]
enum Has {
    Addresses(Vec<IpAddr>, u32),
    Code(u8),
    /// It never answers.
    Nothing,
}

/// A name server on loopback, which knows only what it was told, and counts questions.
struct Server {
    resolver: Resolver,
    asked: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Server {
    async fn new(zone: &[(&str, u16, Has)], search: &str) -> Self {
        Self::waited_for(zone, search, Duration::from_millis(300)).await
    }

    async fn waited_for(zone: &[(&str, u16, Has)], search: &str, patience: Duration) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = socket.local_addr().unwrap().port();
        let zone: HashMap<(String, u16), Has> =
            zone.iter().map(|(name, kind, has)| (((*name).to_owned(), *kind), has.clone())).collect();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            let mut packet = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut packet).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                if let Some(answer) = answer(&packet[..length], &zone) {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        }));
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        let search = if search.is_empty() { vec![] } else { vec![Name::from_ascii(search).unwrap()] };
        let config = ResolverConfig::from_parts(None, search, vec![server]);
        let mut builder = Hickory::builder_with_config(config, TokioRuntimeProvider::default());
        builder.options_mut().timeout = patience;
        builder.options_mut().attempts = 1;
        let resolver = Resolver { dns: Mutex::default(), fixed: Some(builder.build().unwrap()) };
        Self { resolver, asked, _task: task }
    }

    async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, NoAddress> {
        let mut found = self.resolver.addresses(name, Instant::now() + Duration::from_secs(10)).await;
        if let Ok(found) = &mut found {
            found.sort();
        }
        found
    }
}

/// The answer to one question (RFC 1035, section 4); nothing where there is to be none.
fn answer(question: &[u8], zone: &HashMap<(String, u16), Has>) -> Option<Vec<u8>> {
    let (mut at, mut labels) = (12, Vec::new());
    while question[at] != 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8(question[at + 1..at + 1 + length].to_vec()).unwrap().to_lowercase());
        at += 1 + length;
    }
    let kind = u16::from_be_bytes([question[at + 1], question[at + 2]]);
    let has = zone.get(&(labels.join("."), kind)).cloned().unwrap_or(Has::Code(NXDOMAIN));
    let (code, addresses, ttl) = match has {
        Has::Addresses(addresses, ttl) => (0, addresses, ttl),
        Has::Code(code) => (code, Vec::new(), 0),
        Has::Nothing => return None,
    };
    let mut answer = question[..2].to_vec();
    let count = u16::try_from(addresses.len()).unwrap().to_be_bytes();
    answer.extend([0x81, 0x80 | code, 0, 1, count[0], count[1], 0, 0, 0, 0]);
    answer.extend(&question[12..at + 5]);
    for address in addresses {
        answer.extend([0xc0, 12]);
        answer.extend(kind.to_be_bytes());
        answer.extend([0, 1]);
        answer.extend(ttl.to_be_bytes());
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        answer.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
        answer.extend(bytes);
    }
    Some(answer)
}

fn four(last: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, last).into()
}

fn six(last: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last).into()
}

fn has(addresses: &[IpAddr]) -> Has {
    Has::Addresses(addresses.to_vec(), 300)
}

#[tokio::test]
async fn both_families_are_found_and_remembered_for_their_time() {
    let zone = [("relay.test", A, has(&[four(1), four(2)])), ("relay.test", AAAA, has(&[six(1)]))];
    let server = Server::new(&zone, "").await;
    assert_eq!(server.addresses("relay.test").await, Ok(vec![four(1), four(2), six(1)]));
    let asked = server.asked.load(Ordering::SeqCst);
    assert_eq!(server.addresses("relay.test").await, Ok(vec![four(1), four(2), six(1)]));
    assert_eq!(server.asked.load(Ordering::SeqCst), asked, "the second time nobody was asked");

    let brief = [("relay.test", A, Has::Addresses(vec![four(1)], 0)), ("relay.test", AAAA, Has::Code(0))];
    let server = Server::new(&brief, "").await;
    assert_eq!(server.addresses("relay.test").await, Ok(vec![four(1)]));
    let asked = server.asked.load(Ordering::SeqCst);
    assert_eq!(server.addresses("relay.test").await, Ok(vec![four(1)]));
    assert!(server.asked.load(Ordering::SeqCst) > asked, "a TTL of nothing is over");
}

#[tokio::test]
async fn no_such_name_no_address_and_no_answer_are_three_things() {
    let zone = [
        ("empty.test", A, Has::Code(0)),
        ("empty.test", AAAA, Has::Code(0)),
        ("silent.test", A, Has::Nothing),
        ("silent.test", AAAA, Has::Nothing),
        ("broken.test", A, Has::Code(SERVFAIL)),
        ("broken.test", AAAA, Has::Code(SERVFAIL)),
        ("half.test", A, Has::Code(0)),
        ("half.test", AAAA, Has::Nothing),
    ];
    let server = Server::new(&zone, "").await;
    assert_eq!(server.addresses("none.test").await, Err(NoAddress::Unknown));
    assert_eq!(server.addresses("empty.test").await, Err(NoAddress::Empty));
    for name in ["silent.test", "broken.test", "half.test"] {
        let found = server.addresses(name).await;
        assert!(matches!(found, Err(NoAddress::Silent(_))), "{name}: {found:?}");
    }
}

#[tokio::test]
async fn a_family_that_nobody_answers_for_does_not_hold_up_the_other() {
    let zone = [("relay.test", A, has(&[four(1)])), ("relay.test", AAAA, Has::Nothing)];
    let patience = Duration::from_secs(3);
    let server = Server::waited_for(&zone, "", patience).await;
    let begun = Instant::now();
    assert_eq!(server.addresses("relay.test").await, Ok(vec![four(1)]));
    assert!(begun.elapsed() < patience, "{:?}", begun.elapsed());
    let zone = [("relay.test", A, Has::Nothing), ("relay.test", AAAA, has(&[six(1)]))];
    let server = Server::new(&zone, "").await;
    assert_eq!(server.addresses("relay.test").await, Ok(vec![six(1)]));
}

#[tokio::test]
async fn a_short_name_is_looked_for_in_the_search_domain() {
    let zone = [("relay.corp.test", A, has(&[four(7)])), ("relay.corp.test", AAAA, Has::Code(0))];
    let server = Server::new(&zone, "corp.test").await;
    assert_eq!(server.addresses("relay").await, Ok(vec![four(7)]));
}

#[tokio::test]
async fn both_are_asked_for_themselves_where_somebody_wants_to_know() {
    let deadline = Instant::now() + Duration::from_secs(10);
    let zone = [("localhost", A, Has::Code(0)), ("localhost", AAAA, Has::Code(0))];
    let server = Server::new(&zone, "").await;
    // hickory answers for it by itself: the name is one that no server is asked for.
    let found = server.resolver.look_up("localhost", deadline).await;
    assert!(found.system.is_some_and(|found| found.iter().all(IpAddr::is_loopback)));
    let found = server.resolver.look_up("none.test", deadline).await;
    assert_eq!(found.dns, Err(NoAddress::Unknown));
    let found = server.resolver.look_up("192.0.2.9", deadline).await;
    assert_eq!(found, LookedUp { dns: Ok(vec![four(9)]), system: Some(vec![four(9)]) });
}

#[tokio::test]
async fn an_address_needs_nobody_and_the_system_knows_itself() {
    let deadline = Instant::now() + Duration::from_secs(10);
    let nobody = Server::new(&[], "").await;
    assert_eq!(nobody.addresses("192.0.2.9").await, Ok(vec![four(9)]));
    assert_eq!(nobody.addresses("2001:db8::9").await, Ok(vec![six(9)]));
    assert_eq!(nobody.asked.load(Ordering::SeqCst), 0);
    let found = Resolver::default().addresses("localhost", deadline).await.unwrap();
    assert!(found.iter().all(IpAddr::is_loopback), "{found:?}");
    assert!(by_system("localhost", deadline).await.is_some());
}
