//! Every move of the malicious peer, in an order drawn from a seed, against honest daemons: what must hold afterwards.
//!
//! A seed that failed is printed; `BYWAY_SEED=N` walks it again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use byway::api::types::{Request, Role};
use byway::model::id::{PeerId, SubnetId};
use byway::model::join::Invite;
use byway::model::zone::RecordData;
use byway::wire::control::set_hash;

use super::evil::dice;
use super::evil::hand::{Hand, key};
use super::evil::peer::{Place, peer_of};
use super::evil::walk::{Actor, Standing, Walk};
use super::node::{Node, PATIENCE, until, within};

/// Moves of one walk.
const STEPS: usize = 40;
/// Bytes of records that a subnet of eight may have at the most.
const RECORDS: usize = 4 * 1024 * 1024;

/// An owner, an admin and two members that keep the rules, each with a name of its own.
struct Honest {
    nodes: Vec<Node>,
    id: SubnetId,
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// The mesh; with an enemy that was a member before all but the owner.
async fn honest(early: Option<&str>) -> (Honest, Vec<Actor>) {
    let mut nodes = Vec::new();
    for name in NAMES {
        nodes.push(Node::start(name).await);
    }
    let created = nodes[0].create("lab").await;
    let mut enemies = vec![];
    if let Some(word) = early {
        let (_, invite) = nodes[0].invite("lab", 1, 3_600_000, Role::Member).await;
        let enemy = key(&format!("word:{word}")).unwrap();
        let to = vec![nodes[0].address().parse().unwrap()];
        let hand = Hand {
            to,
            subnet: created.id,
            key: enemy.clone(),
            carrier: None,
            from: vec![],
        };
        hand.join(Some(&Invite::parse(&invite).unwrap()), word)
            .await
            .unwrap();
        // A second later is another time to a claim that is dated.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        enemies.push(Actor {
            standing: Standing::Member,
            key: enemy,
        });
    }
    for (at, role) in [(1, Role::Admin), (2, Role::Member), (3, Role::Member)] {
        let (_, invite) = nodes[0].invite("lab", 1, 3_600_000, role).await;
        nodes[at].join(&invite, &[], PATIENCE).await.unwrap();
    }
    for node in &nodes {
        until("everybody sees everybody", || async {
            node.peers("lab").await.len() == 4 + enemies.len()
        })
        .await;
        let name = format!("web-{}", node.address().rsplit('/').next().unwrap());
        let data = vec![RecordData::Txt(name.clone())];
        node.ok(Request::DnsAdd {
            subnet: "lab".into(),
            name,
            data,
            ttl: 30,
        })
        .await;
    }
    (
        Honest {
            nodes,
            id: created.id,
        },
        enemies,
    )
}

/// What an honest member must not lose: itself as it sees itself, and what the others say of it.
type Standpoint = BTreeSet<String>;

impl Honest {
    fn peers(&self) -> BTreeSet<PeerId> {
        self.nodes.iter().map(|n| n.peer).collect()
    }

    /// Members that are honest, with roles and addresses, and the names they hold, as one node sees it.
    async fn seen_by(&self, node: &Node) -> Standpoint {
        let honest = self.peers();
        let members = node
            .members("lab")
            .await
            .into_iter()
            .filter(|m| honest.contains(&m.peer_id));
        let members = members.map(|m| {
            format!(
                "{} {} {:?} {:?} {:?}",
                m.name, m.peer_id, m.role, m.addresses, m.leases
            )
        });
        let names = node
            .names("lab")
            .await
            .into_iter()
            .filter(|n| n.starts_with("web-"));
        members.chain(names).collect()
    }

    fn places(&self) -> Vec<Place> {
        self.nodes
            .iter()
            .map(|n| n.address().parse().unwrap())
            .collect()
    }

    fn hand(&self) -> Hand {
        let key = key("word:nobody").unwrap();
        Hand {
            to: self.places(),
            subnet: self.id,
            key,
            carrier: None,
            from: vec![],
        }
    }

    /// Lets the enemy in like anybody.
    async fn let_in(&self, word: &str, role: Role) -> Actor {
        let (_, invite) = self.nodes[0].invite("lab", 1, 3_600_000, role).await;
        let hand = Hand {
            key: key(&format!("word:{word}")).unwrap(),
            ..self.hand()
        };
        hand.join(Some(&Invite::parse(&invite).unwrap()), word)
            .await
            .unwrap();
        let peer = peer_of(&hand.key);
        for node in &self.nodes {
            until("the enemy is in", || async {
                node.peers("lab").await.contains(&peer)
            })
            .await;
        }
        let standing = if role == Role::Admin {
            Standing::Admin
        } else {
            Standing::Member
        };
        Actor {
            standing,
            key: hand.key,
        }
    }

    /// Puts the enemy out.
    async fn put_out(&self, actor: &Actor) {
        let peer = peer_of(&actor.key);
        self.nodes[0]
            .ok(Request::MemberRemove {
                subnet: "lab".into(),
                member: peer.to_string(),
            })
            .await;
        for node in &self.nodes {
            within(PATIENCE, "the enemy is out", || async {
                !node.peers("lab").await.contains(&peer)
            })
            .await;
        }
    }

    /// Walks, and checks what must hold whoever walked.
    async fn walk(&self, actors: Vec<Actor>, seed: u64) {
        eprintln!("seed {seed}: BYWAY_SEED={seed} walks it again");
        let mut before = Vec::new();
        for node in &self.nodes {
            before.push(self.seen_by(node).await);
        }
        let mut walk = Walk::new(self.hand(), actors.clone(), seed);
        walk.names = before[0]
            .iter()
            .filter_map(|n| Some(n.strip_prefix("web-")?.split('.').next()?.to_owned()))
            .collect();
        walk.names = walk
            .names
            .iter()
            .map(|n| format!("web-{n}"))
            .chain(["a".into(), "x.c".into()])
            .collect();
        walk.victims = self.peers().into_iter().collect();
        // An admin may remove a member: that is no attack. The owner it may not.
        walk.expendable = vec![self.nodes[0].peer, PeerId([9; 32])];
        for _ in 0..STEPS {
            eprintln!("{}", walk.step().await);
        }
        self.hold(&before).await;
        self.agree(&actors).await;
    }

    /// Nobody lost an address, a name, a role or a way to another.
    async fn hold(&self, before: &[Standpoint]) {
        for (node, before) in self.nodes.iter().zip(before) {
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let now = self.seen_by(node).await;
                let lost: Vec<&String> = before.difference(&now).collect();
                if lost.is_empty() {
                    break;
                }
                assert!(
                    Instant::now() < deadline,
                    "{} misses {lost:?} and sees {now:?}",
                    node.address()
                );
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            for other in self.nodes.iter().filter(|other| other.peer != node.peer) {
                until("everybody reaches everybody", || async {
                    node.reaches(other.peer).await
                })
                .await;
            }
            assert_eq!(node.status().await.subnets.len(), 1, "the subnet is there");
        }
    }

    /// All hold the same records, and not many.
    async fn agree(&self, actors: &[Actor]) {
        let Some(teller) = actors.iter().find(|a| a.standing == Standing::Member) else {
            return;
        };
        let hand = Hand {
            key: teller.key.clone(),
            ..self.hand()
        };
        within(
            Duration::from_secs(60),
            "everybody holds the same records",
            || async {
                let mut hashes = BTreeSet::new();
                for place in self.places() {
                    let Ok(seen) = hand.pull_from(place).await else {
                        return false;
                    };
                    let bytes: usize = seen.records.iter().map(|r| r.body.len() + 128).sum();
                    assert!(bytes < RECORDS, "{bytes} bytes of records");
                    hashes.insert(set_hash(
                        &seen
                            .records
                            .iter()
                            .map(byway::model::record::Signed::digest)
                            .collect::<BTreeSet<_>>(),
                    ));
                }
                hashes.len() == 1
            },
        )
        .await;
    }

    /// The owner's word counts, and the subnet can be used and ended.
    async fn end(self, actors: &[Actor]) {
        let owner = &self.nodes[0];
        for actor in actors
            .iter()
            .filter(|a| matches!(a.standing, Standing::Member | Standing::Admin))
        {
            if owner.peers("lab").await.contains(&peer_of(&actor.key)) {
                self.put_out(actor).await;
            }
        }
        let e = Node::start("e").await;
        let (_, invite) = self.nodes[1]
            .invite("lab", 1, 3_600_000, Role::Member)
            .await;
        e.join(&invite, &[], PATIENCE).await.unwrap();
        until("the new member is everywhere", || async {
            owner.peers("lab").await.contains(&e.peer)
        })
        .await;
        owner
            .ok(Request::MemberRole {
                subnet: "lab".into(),
                member: "b".into(),
                role: Role::Member,
            })
            .await;
        owner
            .ok(Request::MemberRemove {
                subnet: "lab".into(),
                member: e.peer.to_string(),
            })
            .await;
        owner
            .ok(Request::Destroy {
                subnet: "lab".into(),
            })
            .await;
        for node in &self.nodes {
            until("it is over for all", || async {
                node.members("lab").await.is_empty()
            })
            .await;
        }
    }
}

fn stranger() -> Actor {
    Actor {
        standing: Standing::Stranger,
        key: key("word:stranger").unwrap(),
    }
}

/// The seed asked for, or a fresh one behind those that are always walked.
fn seeds() -> Vec<u64> {
    match std::env::var("BYWAY_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        Some(seed) => vec![seed],
        None if std::env::var("BYWAY_TESTS").is_ok_and(|v| v == "all") => {
            (0..8).map(|_| dice::seed()).collect()
        }
        None => vec![dice::seed()],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_a_stranger_does_changes_nothing() {
    for seed in seeds() {
        let (honest, _) = honest(None).await;
        honest.walk(vec![stranger()], seed).await;
        assert_eq!(
            honest.nodes[2].peers("lab").await,
            honest.peers(),
            "a stranger got in"
        );
        honest.end(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_members_and_former_admins_do_takes_nothing_from_the_others() {
    for seed in seeds() {
        let (honest, mut actors) = honest(Some("early")).await;
        let mut former = honest.let_in("former", Role::Admin).await;
        honest.put_out(&former).await;
        former.standing = Standing::Former;
        actors.extend([
            stranger(),
            honest.let_in("member", Role::Member).await,
            former,
        ]);
        honest.walk(actors.clone(), seed).await;
        honest.end(&actors).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_an_admin_does_the_owner_has_the_last_word() {
    for seed in seeds() {
        let (honest, mut actors) = honest(Some("early")).await;
        let mut former = honest.let_in("former", Role::Admin).await;
        honest.put_out(&former).await;
        former.standing = Standing::Former;
        let admin = honest.let_in("admin", Role::Admin).await;
        actors.extend([former, admin.clone(), admin]);
        honest.walk(actors.clone(), seed).await;
        honest.end(&actors).await;
    }
}
