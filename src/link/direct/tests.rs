mod bounds;
mod relayed;
mod sprayed;
mod told;

use super::*;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use zeroize::Zeroizing;

use crate::crypto::frame::{Cipher, Library};
use crate::model::id::{Name, SubnetId};
use crate::model::view::SubnetView;
use crate::model::zone::Zone;
use crate::testing::eventually;
use crate::udp::Options;

/// One daemon: its port and its control task.
struct Side {
    me: PeerId,
    links: Links,
    handle: Handle,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    at: SocketAddr,
}

/// The streams between them.
#[derive(Clone, Default)]
struct Streams {
    handles: Arc<parking_lot::Mutex<HashMap<PeerId, Handle>>>,
    down: Arc<AtomicBool>,
    /// Who asked for legs, and to whom.
    legs_wanted: Arc<parking_lot::Mutex<Vec<(PeerId, PeerId)>>>,
    /// Who said that datagrams do not reach whom, or do again.
    blocked: Arc<parking_lot::Mutex<Vec<(PeerId, PeerId, bool)>>>,
    /// Nobody tells where it may be reached.
    silent: Arc<AtomicBool>,
    /// They tell what stands before them, and no address.
    hiding: Arc<AtomicBool>,
    /// Who found whom straight, and where.
    punched: Arc<parking_lot::Mutex<Vec<(PeerId, PeerId, SocketAddr)>>>,
}

fn secret(n: u8) -> Zeroizing<[u8; 32]> {
    Zeroizing::new([n; 32])
}

fn public(n: u8) -> [u8; 32] {
    x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from([n; 32])).to_bytes()
}

fn peer(n: u8) -> PeerId {
    PeerId([n; 32])
}

fn subnet(n: u16) -> SubnetId {
    let mut id = [7; 16];
    id[..2].copy_from_slice(&n.to_be_bytes());
    SubnetId(id)
}

/// What `me` sees: so many subnets with those members.
fn view(me: u8, subnets: u16, members: &[u8]) -> Arc<View> {
    let name: Name = "lab".parse().unwrap();
    let others = || members.iter().copied().filter(|n| *n != me);
    let of = |n| SubnetView {
        id: subnet(n),
        interface: "bw-lab".into(),
        cidr4: Some("10.7.0.0/16".parse().unwrap()),
        cidr6: None,
        addresses: vec![],
        mtu: 1420,
        routes: Default::default(),
        here: Default::default(),
        members: Arc::new(others().map(peer).collect()),
        hosts: Default::default(),
        data_keys: Arc::new(others().map(|n| (peer(n), public(n))).collect()),
        zone: Arc::new(Zone::empty(&name)),
        name: name.clone(),
    };
    let subnets: BTreeMap<_, _> = (0..subnets).map(|n| (subnet(n), Arc::new(of(n)))).collect();
    Arc::new(View {
        subnets,
        ..View::default()
    })
}

impl Streams {
    /// Makes a daemon whose control task nobody runs yet, and says where its port is.
    fn make(&self, n: u8, has_aes: bool) -> (Links, Direct, Handle, SocketAddr) {
        let port = Port::bind(&["127.0.0.1:0".parse().unwrap()], &Options::default()).unwrap();
        let at = port.local()[0];
        let (links, _) = Links::new(tokio::runtime::Handle::current(), Some(port));
        let mut frames = links.frames().unwrap().unwrap();
        std::thread::spawn(move || {
            while let Ok(mut read) = frames.next_batch() {
                while let Some(frame) = read.next_frame() {
                    let Some(mut packets) = read.packets_of(frame) else {
                        continue;
                    };
                    while packets.next().is_some() {}
                }
            }
        });
        let config = Config {
            me: peer(n),
            secret: secret(n),
            aes: has_aes.then_some(Library::AwsLc),
            post_quantum: Default::default(),
        };
        let (direct, handle, asks) = Direct::new(&links, config).unwrap();
        lock(&self.handles).insert(peer(n), handle.clone());
        tokio::spawn(self.clone().carry(peer(n), asks));
        (links, direct, handle, at)
    }

    /// Starts a daemon; members connect to it at once.
    async fn start(&self, n: u8, view: Arc<View>, has_aes: bool) -> Side {
        let (links, direct, handle, at) = self.make(n, has_aes);
        let stop = CancellationToken::new();
        let task = tokio::spawn(direct.run(stop.clone()));
        handle.retain(view).await;
        let kind = Kind::Host;
        handle.own(vec![Candidate { address: at, kind }]).await;
        Side {
            me: peer(n),
            links,
            handle,
            stop,
            task,
            at,
        }
    }

    /// Carries the questions of one daemon.
    async fn carry(self, from: PeerId, mut asks: mpsc::Receiver<Ask>) {
        while let Some(ask) = asks.recv().await {
            let to = |peer: &PeerId| {
                let to = lock(&self.handles).get(peer).cloned();
                to.filter(|_| !self.down.load(Ordering::Relaxed))
            };
            let (key, message, answer) = match ask {
                Ask::Session {
                    key,
                    message,
                    answer,
                } => (key, message, answer),
                Ask::Paths {
                    peer,
                    paths,
                    answer,
                } => {
                    let to = to(&peer).filter(|_| !self.silent.load(Ordering::Relaxed));
                    let is_hiding = self.hiding.load(Ordering::Relaxed);
                    let said = move |mut paths: Paths| {
                        paths.candidates.retain(|_| !is_hiding);
                        paths
                    };
                    tokio::spawn(async move {
                        let Some(to) = to else { return };
                        let answered = to.paths(from, said(paths)).await.ok();
                        answer.give(answered.map(said)).await;
                    });
                    continue;
                }
                Ask::UdpBlocked { peer, blocked } => {
                    lock(&self.blocked).push((from, peer, blocked));
                    continue;
                }
                Ask::DirectLost { .. } | Ask::DataLost { .. } | Ask::Roamed => continue,
                Ask::Leg { peer } => {
                    lock(&self.legs_wanted).push((from, peer));
                    continue;
                }
                Ask::Punched { peer, address } => {
                    lock(&self.punched).push((from, peer, address));
                    continue;
                }
            };
            let to = to(&key.peer);
            let is_silent = [&self.silent, &self.hiding]
                .iter()
                .any(|flag| flag.load(Ordering::Relaxed));
            let said = move |mut message: SessionMessage| {
                if is_silent {
                    message.endpoints.clear();
                }
                message
            };
            tokio::spawn(async move {
                let Some(to) = to else { return };
                let key = Key {
                    subnet: key.subnet,
                    peer: from,
                };
                let answered = to.request(key, said(message)).await;
                answer.give(answered.map(said)).await;
            });
        }
    }
}

impl Side {
    fn key(&self, subnet_number: u16, other: &Side) -> Key {
        debug_assert_ne!(self.me, other.me);
        Key {
            subnet: subnet(subnet_number),
            peer: other.me,
        }
    }

    fn route(&self, other: &Side) -> Option<Arc<Route>> {
        self.links.link(self.key(0, other)).route()
    }

    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
        self.links.close_port();
    }
}

const SOON: Duration = Duration::from_secs(5);

async fn pair(streams: &Streams, aes: [bool; 2]) -> (Side, Side) {
    let a = streams.start(1, view(1, 1, &[1, 2]), aes[0]).await;
    let b = streams.start(2, view(2, 1, &[1, 2]), aes[1]).await;
    a.handle.connected(b.me).await;
    b.handle.connected(a.me).await;
    (a, b)
}

async fn both_up(a: &Side, b: &Side) -> Duration {
    eventually("a path both ways", SOON, async || {
        a.route(b).is_some() && b.route(a).is_some()
    })
    .await
}

#[tokio::test]
async fn two_members_leave_the_stream() {
    for (aes, cipher) in [
        ([true, true], Cipher::Aes256Gcm),
        ([true, false], Cipher::ChaCha20Poly1305),
        ([false, true], Cipher::ChaCha20Poly1305),
    ] {
        let streams = Streams::default();
        let (a, b) = pair(&streams, aes).await;
        both_up(&a, &b).await;
        let status = a.handle.status().await.remove(&a.key(0, &b)).unwrap();
        assert_eq!(status.cipher, Some(cipher));
        let path = status.path.unwrap();
        assert_eq!(path.to, b.at);
        assert!(path.mtu >= 1280 && path.since.elapsed().unwrap() < SOON);
        assert_eq!(status.path_changes, 1);
        let rtt = a.handle.ping(a.key(0, &b)).await.unwrap();
        assert!(rtt < Duration::from_secs(1));
        eventually("the size is known", SOON, async || {
            a.route(&b).is_some_and(|r| r.settled && r.payload >= 1472)
        })
        .await;
        a.end().await;
        b.end().await;
    }
}

#[tokio::test]
async fn one_who_stops_says_so() {
    let streams = Streams::default();
    let (a, b) = pair(&streams, [true; 2]).await;
    both_up(&a, &b).await;
    streams.down.store(true, Ordering::Relaxed);
    a.end().await;
    let took = eventually("back to the stream", SOON, async || {
        b.links
            .link(Key {
                subnet: subnet(0),
                peer: peer(1),
            })
            .route()
            .is_none()
    });
    assert!(
        took.await < Duration::from_secs(1),
        "without waiting for missed probes"
    );
    b.end().await;
}

#[tokio::test]
async fn one_who_was_killed_and_comes_again_is_used_again() {
    let streams = Streams::default();
    let (a, b) = pair(&streams, [true; 2]).await;
    both_up(&a, &b).await;
    // No goodbye.
    b.task.abort();
    b.links.close_port();
    let again = streams.start(2, view(2, 1, &[1, 2]), true).await;
    again.handle.connected(a.me).await;
    a.handle.connected(again.me).await;
    let there = async || {
        a.route(&again).is_some_and(|r| r.to == again.at.into()) && again.route(&a).is_some()
    };
    eventually("a path to the new one", 2 * SOON, there).await;
    assert!(again.handle.ping(again.key(0, &a)).await.is_some());
    a.end().await;
    again.end().await;
}

#[tokio::test]
async fn only_members_with_a_certified_key_get_a_session() {
    let streams = Streams::default();
    let a = streams.start(1, view(1, 1, &[1, 2]), true).await;
    // A member of that subnet in its own eyes only.
    let stranger = streams.start(3, view(3, 1, &[1, 3]), true).await;
    // And one whose key is another than its grant says.
    let impostor = streams.start(2, view(2, 1, &[1, 2]), true).await;
    impostor.handle.retain(view(2, 1, &[])).await;
    let key = Key {
        subnet: subnet(0),
        peer: stranger.me,
    };
    for message in [vec![], vec![0], vec![1; 300]] {
        let message = SessionMessage {
            message,
            endpoints: vec![],
        };
        assert_eq!(a.handle.request(key, message.clone()).await, None);
        assert_eq!(
            a.handle
                .request(
                    Key {
                        subnet: subnet(9),
                        peer: peer(2)
                    },
                    message
                )
                .await,
            None
        );
    }
    a.handle.connected(stranger.me).await;
    stranger.handle.connected(a.me).await;
    a.handle.connected(impostor.me).await;
    let status = a.handle.status().await;
    assert!(!status.contains_key(&key));
    assert!(
        status
            .values()
            .all(|s| s.path.is_none() && s.cipher.is_none())
    );
    for side in [a, stranger, impostor] {
        side.end().await;
    }
}

#[tokio::test]
async fn who_is_removed_is_cut_off_at_once() {
    let streams = Streams::default();
    let (a, b) = pair(&streams, [true; 2]).await;
    both_up(&a, &b).await;
    a.handle.retain(view(1, 1, &[1])).await;
    assert!(a.handle.status().await.is_empty());
    assert!(a.route(&b).is_none());
    let before = a.links.unmatched().unknown.load(Ordering::Relaxed);
    let strayed = async || a.links.unmatched().unknown.load(Ordering::Relaxed) > before;
    // Its probes open nothing any more, and it goes back to the stream.
    eventually("its frames are nobody's", 2 * SOON, strayed).await;
    eventually("b is on the stream", 2 * SOON, async || {
        b.route(&a).is_none()
    })
    .await;
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn an_address_inside_the_overlay_is_no_path() {
    let streams = Streams::default();
    let (a, b) = pair(&streams, [true; 2]).await;
    both_up(&a, &b).await;
    let loopback = |n: u8, members: &[u8]| {
        let mut view = View::clone(&view(n, 1, members));
        let first = view.subnets.values_mut().next().unwrap();
        Arc::make_mut(first).cidr4 = Some("127.0.0.0/8".parse().unwrap());
        Arc::new(view)
    };
    a.handle.retain(loopback(1, &[1, 2])).await;
    assert_eq!(
        a.handle
            .status()
            .await
            .values()
            .filter(|s| s.path.is_some())
            .count(),
        0
    );
    assert!(a.route(&b).is_none());
    a.end().await;
    b.end().await;
}

/// Kilobytes of memory that this process has written. Code does not count: how much of it is read first by a session
/// depends on what the linker put side by side, and it is read once, not for each session.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Set for the second run of the test below: alone in its process, which is what it measures.
const ALONE: &str = "BYWAY_TEST_ALONE";

#[test]
fn two_hundred_sessions_take_little_memory() {
    if std::env::var_os(ALONE).is_some() {
        return tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(two_hundred());
    }
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "link::direct::tests::two_hundred_sessions_take_little_memory",
            "--nocapture",
        ])
        .env(ALONE, "1")
        // What was freed is no cost of a session: the allocator gives it back.
        .envs([
            ("MALLOC_ARENA_MAX", "1"),
            ("MALLOC_TRIM_THRESHOLD_", "0"),
            ("MALLOC_TOP_PAD_", "0"),
        ])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    assert!(
        run.status.success() && said.contains("kB a session"),
        "{said}{}",
        String::from_utf8_lossy(&run.stderr)
    );
    print!("{said}");
}

async fn two_hundred() {
    const COUNT: u16 = 200;
    let streams = Streams::default();
    let (a, b) = (
        streams.start(1, view(1, COUNT, &[1, 2]), true).await,
        streams.start(2, view(2, COUNT, &[1, 2]), true).await,
    );
    let before = resident();
    a.handle.connected(b.me).await;
    b.handle.connected(a.me).await;
    let all = async || {
        let up = |s: HashMap<Key, DirectStatus>| s.values().filter(|s| s.path.is_some()).count();
        up(a.handle.status().await) == usize::from(COUNT)
            && up(b.handle.status().await) == usize::from(COUNT)
    };
    let took = eventually("all paths", 12 * SOON, all).await;
    let each = (resident() - before) / (2 * usize::from(COUNT));
    println!("{COUNT} sessions up in {took:?}; {each} kB a session");
    assert!(each <= 12, "{each} kB a session");
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn who_is_reached_straight_is_told_apart_and_says_what_it_sees() {
    let streams = Streams::default();
    let (a, b) = pair(&streams, [true; 2]).await;
    both_up(&a, &b).await;
    let key = a.key(0, &b);
    let told = async || {
        let status = a.handle.status().await.remove(&key);
        status.is_some_and(|status| {
            status.here.udp == Udp::Works
                && status.here.mapping == Mapping::Open
                && status.there.is_some_and(|there| there.udp == Udp::Works)
        })
    };
    // Each sees the other where it is: there is no NAT, and both say so.
    eventually("both know what stands before the other", SOON, told).await;
    let status = a.handle.status().await.remove(&key).unwrap();
    assert!(status.tried.iter().any(|t| t.address == b.at && t.answered));
    let [change] = status.changes.as_ref() else {
        panic!("one change: {:?}", status.changes)
    };
    assert_eq!((change.cause, change.from), (Cause::Found, None));
    assert!(lock(&streams.punched).contains(&(a.me, b.me, b.at)));
    a.end().await;
    b.end().await;
}

#[tokio::test]
async fn what_is_denied_is_neither_told_nor_used() {
    let streams = Streams::default();
    let (a, b) = pair(&streams, [true; 2]).await;
    both_up(&a, &b).await;
    a.handle.deny(vec!["127.0.0.0/8".parse().unwrap()]).await;
    eventually("no path into a denied network", SOON, async || {
        a.route(&b).is_none()
    })
    .await;
    let status = a.handle.status().await.remove(&a.key(0, &b)).unwrap();
    assert!(status.tried.is_empty());
    assert_eq!(status.changes.last().unwrap().cause, Cause::Forbidden);
    a.end().await;
    b.end().await;
}
