use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use super::*;

const SIX: &str = "2001:db8::1";
const SIX_TWO: &str = "2001:db8::2";
const FOUR: &str = "192.0.2.1";
const FOUR_TWO: &str = "192.0.2.2";

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// What a scripted address does.
#[derive(Clone, Copy)]
enum Way {
    After(u64),
    Refused,
    Silent,
}

/// A network in which each address does what is written here; it notes when each was tried, in milliseconds.
struct Network {
    ways: Vec<(IpAddr, Way)>,
    begun: Instant,
    tried: Mutex<Vec<(String, u128)>>,
    running: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Network {
    fn new(ways: &[(&str, Way)]) -> Self {
        Self {
            ways: ways.iter().map(|(text, way)| (text.parse().unwrap(), *way)).collect(),
            begun: Instant::now(),
            tried: Mutex::default(),
            running: Arc::default(),
        }
    }

    async fn race(&self) -> Result<SocketAddr, Vec<Dead>> {
        let addresses: Vec<IpAddr> = self.ways.iter().map(|(address, _)| *address).collect();
        race(&addresses, 443, self.begun + Duration::from_secs(10), |address| {
            let at = self.begun.elapsed().as_millis();
            self.tried.lock().unwrap().push((address.ip().to_string(), at));
            let way = self.ways.iter().find(|(known, _)| *known == address.ip()).unwrap().1;
            self.running.fetch_add(1, Ordering::SeqCst);
            let running = Running(Arc::clone(&self.running));
            async move {
                let _running = running;
                match way {
                    Way::After(milliseconds) => sleep(Duration::from_millis(milliseconds)).await,
                    Way::Refused => return Err(io::ErrorKind::ConnectionRefused.into()),
                    Way::Silent => std::future::pending().await,
                }
                Ok(address)
            }
        })
        .await
    }

    fn tried(&self) -> Vec<(String, u128)> {
        self.tried.lock().unwrap().clone()
    }
}

#[test]
fn families_take_turns_and_there_are_never_too_many() {
    let mixed = in_turns(&addresses(&[FOUR, FOUR_TWO, SIX, SIX_TWO]));
    assert_eq!(mixed, addresses(&[SIX, FOUR, SIX_TWO, FOUR_TWO]));
    assert_eq!(in_turns(&addresses(&[FOUR, FOUR_TWO, SIX])), addresses(&[SIX, FOUR, FOUR_TWO]));
    assert_eq!(in_turns(&addresses(&[FOUR; 40])).len(), MAX_ADDRESSES);
}

#[tokio::test(start_paused = true)]
async fn a_dead_address_first_costs_a_quarter_of_a_second_and_the_loser_is_dropped() {
    let network = Network::new(&[(SIX, Way::Silent), (FOUR, Way::After(30)), (FOUR_TWO, Way::After(0))]);
    let won = network.race().await.unwrap();
    assert_eq!(won.ip(), addresses(&[FOUR])[0]);
    assert_eq!(network.begun.elapsed().as_millis(), 280);
    assert_eq!(network.tried(), [(SIX.to_owned(), 0), (FOUR.to_owned(), 250)]);
    tokio::task::yield_now().await;
    assert_eq!(network.running.load(Ordering::SeqCst), 0, "nobody tries any more");
}

#[tokio::test(start_paused = true)]
async fn an_address_that_refuses_is_followed_at_once() {
    let network = Network::new(&[(SIX, Way::Refused), (FOUR, Way::After(10))]);
    assert_eq!(network.race().await.unwrap().ip(), addresses(&[FOUR])[0]);
    assert_eq!(network.begun.elapsed().as_millis(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_slow_address_may_still_win_over_those_begun_after_it() {
    let network = Network::new(&[(SIX, Way::After(400)), (FOUR, Way::Silent), (SIX_TWO, Way::Silent)]);
    assert_eq!(network.race().await.unwrap().ip(), addresses(&[SIX])[0]);
    assert_eq!(network.begun.elapsed().as_millis(), 400);
}

#[tokio::test(start_paused = true)]
async fn where_all_are_dead_each_end_is_told() {
    let network = Network::new(&[(SIX, Way::Silent), (FOUR, Way::Refused)]);
    let dead = network.race().await.unwrap_err();
    let ends: Vec<_> =
        dead.iter().map(|dead| (dead.address.to_string(), matches!(dead.end, End::Refused))).collect();
    assert_eq!(ends, [("192.0.2.1:443".to_owned(), true), ("[2001:db8::1]:443".to_owned(), false)]);
    assert_eq!(network.begun.elapsed(), ADDRESS_WITHIN);
    assert!(Network::new(&[]).race().await.unwrap_err().is_empty());
}
