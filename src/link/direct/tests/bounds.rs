//! What is bounded in time and number: helper sockets that nobody uses, and probes to who has not answered.

use super::*;

use std::net::UdpSocket;

/// Does what the task would do, until `done`.
async fn drive(direct: &mut Direct, what: &str, done: impl Fn(&Direct) -> bool) {
    let begun = Instant::now();
    while !done(direct) {
        let paths = || {
            let peers = direct.peers.values();
            peers.map(|entry| entry.peer.history().copied().collect::<Vec<_>>())
        };
        let is_late = begun.elapsed() >= SOON;
        assert!(!is_late, "never: {what}; {:?}", paths().collect::<Vec<_>>());
        while let Ok(news) = direct.heard.try_recv() {
            direct.on_heard(Instant::now(), news);
        }
        while let Ok(order) = direct.orders.try_recv() {
            direct.on_order(Instant::now(), order);
        }
        let now = Instant::now();
        if direct.next().is_some_and(|due| due <= now) {
            direct.on_timers(now);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn helper_in_use(direct: &Direct, peer: PeerId) -> Option<u16> {
    direct.peers[&peer].peer.remote()?.helper
}

/// The helper sockets that are open.
fn open(direct: &Direct) -> Vec<u16> {
    let found = std::cell::RefCell::new(Vec::new());
    direct.port.retain_helpers(|helper| {
        found.borrow_mut().push(helper);
        true
    });
    let mut found = found.into_inner();
    found.sort_unstable();
    found
}

#[tokio::test]
async fn a_helper_by_which_nothing_comes_is_closed_and_the_one_in_use_is_not() {
    let streams = Streams::default();
    let b = streams.start(2, view(2, 1, &[1, 2]), true).await;
    let (links, mut direct, handle, at) = streams.make(1, true);
    let kind = Kind::Host;
    handle.retain(view(1, 1, &[1, 2])).await;
    handle.own(vec![Candidate { address: at, kind }]).await;
    handle.connected(b.me).await;
    b.handle.connected(peer(1)).await;
    let is_up = |direct: &Direct| {
        direct
            .peers
            .get(&b.me)
            .is_some_and(|e| e.peer.remote().is_some())
    };
    drive(&mut direct, "a path", is_up).await;
    // What asks for a further socket is a mapping that grows old; the first of two takes the path over.
    direct.open_fresh(Instant::now(), b.me);
    direct.carry_out(b.me);
    let moved = |direct: &Direct| helper_in_use(direct, b.me).is_some();
    drive(&mut direct, "a path by the helper", moved).await;
    let used = helper_in_use(&direct, b.me).unwrap();
    direct.open_fresh(Instant::now(), b.me);
    let both = open(&direct);
    assert!(both.len() == 2 && both.contains(&used));
    // Nothing came by either since, not even by the one in use: its answers may take another way.
    direct.on_timers(Instant::now() + Duration::from_secs(61));
    // By now a test of what the NAT lets in may have one of its own.
    let stays: Vec<u16> = both
        .into_iter()
        .filter(|h| open(&direct).contains(h))
        .collect();
    assert_eq!(stays, [used]);
    assert_eq!(helper_in_use(&direct, b.me), Some(used));
    // Without a path by it, it is closed, too.
    let entry = direct.peers.get_mut(&b.me).unwrap();
    entry.peer.leave(Instant::now(), subnet(0));
    direct.carry_out(b.me);
    direct.on_timers(Instant::now() + Duration::from_secs(200));
    assert!(!open(&direct).contains(&used));
    b.end().await;
    links.close_port();
}

/// Members name addresses of one host that is none of theirs: what goes there is no more than one of them could cause, and in no
/// second more than 250.
#[tokio::test]
async fn many_members_together_aim_no_more_than_250_probes_a_second_at_a_host() {
    let victims: Vec<UdpSocket> = (0..24)
        .map(|_| UdpSocket::bind("127.0.0.88:0").unwrap())
        .collect();
    let at: Vec<SocketAddr> = victims.iter().map(|v| v.local_addr().unwrap()).collect();
    for victim in &victims {
        victim.set_nonblocking(true).unwrap();
    }
    let streams = Streams::default();
    streams.hiding.store(true, Ordering::Relaxed);
    let all: Vec<u8> = (1..13).collect();
    let a = streams.start(1, view(1, 1, &all), true).await;
    let mut others = Vec::new();
    for n in all.into_iter().skip(1) {
        let other = streams.start(n, view(n, 1, &[1, n]), true).await;
        other.handle.own(vec![]).await;
        other.handle.connected(a.me).await;
        others.push(other);
    }
    a.handle.own(vec![]).await;
    for other in &others {
        a.handle.connected(other.me).await;
        let told = at.clone();
        a.handle.candidates(other.me, told, Origin::Told).await;
    }
    let mut came = Vec::new();
    let begun = Instant::now();
    let mut bytes = [0; 2048];
    while begun.elapsed() < Duration::from_secs(3) {
        for victim in &victims {
            while victim.recv(&mut bytes).is_ok() {
                came.push(Instant::now());
            }
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let second = Duration::from_secs(1);
    let in_a_second = |from: Instant| {
        let later = came.iter().filter(|at| **at >= from);
        later.filter(|at| **at < from + second).count()
    };
    let most = came.iter().map(|from| in_a_second(*from)).max();
    // Each of the eleven could cause 96 by itself.
    let most = most.unwrap_or(0);
    assert!(
        (120..=255).contains(&most),
        "{most} in a second, {} in all",
        came.len()
    );
    for side in others.into_iter().chain([a]) {
        side.end().await;
    }
}
