//! Who is patient fills the table of connections without ever beginning many at once.

use super::*;
use crate::host::crowd::Conntrack;
use crate::model::host::{Beginner, Excess};

/// Entries the table is taken to have room for: 2000 are ours.
const MOST: u64 = 4000;

/// The lab, whose first subnet has two other members and reaches some ports of the machine.
struct Crowded {
    lab: Lab,
    config: HostConfig,
    table: Arc<Mutex<Conntrack>>,
    now: Crowd,
}

impl Crowded {
    fn new() -> Crowded {
        let lab = Lab::new();
        let mut config = wanted();
        config.tuns[0].host = "udp/10000-50000,tcp/2222".parse().unwrap();
        config.tuns[0].others = vec![
            "10.7.2.0/24".parse().unwrap(),
            "10.7.3.0/24".parse().unwrap(),
        ];
        lab.host.serve(2222);
        lab.host.serve(53);
        lab.host
            .sh("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=600");
        // Both members are behind one link, as behind a TUN.
        lab.peer.sh("ip addr add 10.7.3.1/32 dev tun0");
        lab.host
            .sh("ip neigh add 10.7.3.1 lladdr 02:00:00:00:00:70 dev bw-net7");
        lab.sync(&config);
        let table = Arc::new(Mutex::new(Conntrack::with_room_for(MOST)));
        Crowded {
            lab,
            config,
            table,
            now: Crowd::new(),
        }
    }

    /// Looks at the table until what is found changes, and has the ruleset follow.
    fn look(&mut self) {
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let (table, config) = (self.table.clone(), self.config.clone());
            let found = self
                .lab
                .host
                .run(async move { table.lock().await.crowd(&config).await });
            if found != self.now {
                self.now = found;
                break;
            }
            assert!(std::time::Instant::now() < until, "{found:?} goes on");
            std::thread::sleep(Duration::from_millis(50));
        }
        let (nft, config, crowd) = (self.lab.nft.clone(), self.config.clone(), self.now.clone());
        let none = Barred::default();
        let failures = self
            .lab
            .host
            .run(async move { nft.lock().await.sync(&config, &none, &crowd).await })
            .unwrap();
        assert!(failures.is_empty(), "{failures:?}");
    }

    fn flooded(&self) -> u64 {
        self.lab.counts().drops["flood"].packets
    }
}

/// Begins so many flows, one after the other.
fn begin(from: &Ns, source: &'static str, to: &'static str, flows: u16) {
    from.run(async move {
        let socket = UdpSocket::bind((source, 0)).await.unwrap();
        for port in 0..flows {
            let _ = socket.send_to(b"x", (to, 10_000 + port)).await;
            if port % 64 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
}

/// Whether the machine answers on port 53, asked from that address.
fn answered(from: &Ns, source: &'static str, wait: Duration) -> bool {
    from.run(async move {
        let socket = UdpSocket::bind((source, 0)).await.unwrap();
        socket.send_to(b"x", ("10.7.1.1", 53)).await.unwrap();
        tokio::time::timeout(wait, socket.recv(&mut [0; 100]))
            .await
            .is_ok_and(|got| got.is_ok())
    })
}

#[test]
#[ignore = "needs root"]
fn a_patient_member_fills_its_share_of_conntrack_and_no_more() {
    let mut crowded = Crowded::new();
    let before = crowded.lab.ruleset();
    let stream = crowded
        .lab
        .peer
        .connect("10.7.1.1:2222", PATIENCE)
        .unwrap()
        .0;
    let stream = Arc::new(Mutex::new(stream));
    begin(&crowded.lab.peer, "10.7.3.1", "10.7.1.1", 300);
    begin(&crowded.lab.peer, "10.7.2.1", "10.7.1.1", 2500);
    assert_eq!(crowded.flooded(), 0, "it never began too many at once");
    crowded.look();
    let [(Beginner::Lease { net, .. }, Excess { held, share })] =
        crowded.now.iter().collect::<Vec<_>>()[..]
    else {
        panic!("{:?}", crowded.now);
    };
    assert_eq!(net.to_string(), "10.7.2.0/24");
    assert!(
        (2400..=2600).contains(held) && (1600..=1700).contains(share),
        "{held} {share}"
    );
    let peer = &crowded.lab.peer;
    assert!(!answered(peer, "10.7.2.1", SILENCE), "it begins nothing");
    assert!(crowded.flooded() > 0, "which is counted");
    assert!(echoes(peer, &stream, PATIENCE), "what it has begun goes on");
    assert!(
        answered(peer, "10.7.3.1", PATIENCE) && crowded.lab.a.tcp("10.7.1.3:80").is_some(),
        "others begin"
    );
    assert!(
        crowded.lab.host.udp("10.7.2.1:80", PATIENCE).is_some(),
        "and it is asked itself"
    );
    crowded
        .lab
        .host
        .sh("conntrack -D -p udp -s 10.7.2.1 2>/dev/null");
    crowded.look();
    assert!(
        crowded.now.is_empty() && answered(&crowded.lab.peer, "10.7.2.1", PATIENCE),
        "{:?}",
        crowded.now
    );
    assert_eq!(crowded.lab.ruleset(), before);
}

#[test]
#[ignore = "needs root"]
fn a_patient_workload_fills_its_share_of_conntrack_and_nobody_elses() {
    let mut crowded = Crowded::new();
    let a = &crowded.lab.a;
    // What it says in a member's name is nobody's: the table never hears of it.
    a.sh("ip addr add 10.7.3.9/32 dev byway0");
    begin(a, "10.7.3.9", "10.7.1.1", 2300);
    begin(a, "10.7.1.2", "10.7.1.1", 2300);
    crowded.look();
    let who: Vec<String> = crowded.now.keys().map(|who| format!("{who:?}")).collect();
    assert!(who.len() == 1 && who[0].contains("bwv00070002"), "{who:?}");
    let lab = &crowded.lab;
    assert!(!answered(&lab.a, "10.7.1.2", SILENCE) && answered(&lab.b, "10.7.1.3", PATIENCE));
    assert!(
        answered(&lab.peer, "10.7.3.1", PATIENCE),
        "the member it spoke for"
    );
    assert!(lab.b.tcp("10.7.1.2:80").is_some(), "it is asked itself");
}
