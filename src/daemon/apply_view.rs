//! Applies a new View: hands it to the host, the gate, the links, the address book and the protocols with peers.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::datapath::TunDied;
use crate::host::Applied;
use crate::link::Links;
use crate::model::host::HostConfig;
use crate::model::id::PeerId;
use crate::model::view::View;
use crate::node::{Node, Whereabouts};
use crate::p2p::{self, Command, Heard, Members};
use crate::service::{Mesh, join};

/// Time a removed member's connections outlive its membership, so that the head which removes it still reaches it. Its
/// packets are refused from the first moment.
const LAST_WORD: Duration = Duration::from_millis(300);

/// Where the host hears what the kernel must match, with the number of the View it follows from.
pub(super) type Desired = watch::Sender<(u64, Arc<HostConfig>)>;

/// Whom a new View is handed to.
pub(crate) struct Listeners {
    pub node: Node,
    pub peers: p2p::Handle,
    pub links: Links,
    /// The protocols with peers.
    pub mesh: Arc<Mesh>,
    /// What the kernel has taken.
    pub applied: watch::Receiver<Applied>,
    /// Whether streams may carry packets: not where post-quantum key agreement is required, for libp2p's keys have none.
    pub by_streams: bool,
}

/// Follows the View, and time: the node's own timers run here.
pub(crate) async fn run(
    ctx: Listeners,
    desired: Desired,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut published = ctx.node.published();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut members = Leaving::default();
    let mut told = Told::default();
    let mut applied = ctx.applied.clone();
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = published.changed() => {
                changed?;
                let view = ctx.node.view().load_full();
                let now = spread(&ctx, &view, &mut told, &desired).await?;
                members.follow(now, Instant::now());
                ctx.peers.send(Command::Grants(view.grants.clone())).await?;
                ctx.peers.send(Command::Members(Arc::new(members.let_in()))).await?;
                // A subnet that is new here has members who are connected already.
                if let Some(direct) = &ctx.mesh.direct {
                    for peer in ctx.mesh.table.members() {
                        direct.begin(peer).await;
                    }
                }
            }
            () = tokio::time::sleep_until(members.due().unwrap_or_else(Instant::now)), if members.due().is_some() => {
                members.end(Instant::now());
                ctx.peers.send(Command::Members(Arc::new(members.let_in()))).await?;
            }
            _ = tick.tick() => {
                ctx.node.tick().await?;
                for join in ctx.node.ask_again().await? {
                    tracing::warn!(subnet = %join.subnet, "this node's grant counts no more; it asks to be let in again");
                    drop(join::start(&ctx.mesh, join));
                }
            }
            changed = applied.changed() => {
                changed?;
                let (taken, dead) = {
                    let applied = applied.borrow_and_update();
                    (applied.taken.clone(), applied.dead_workloads.clone())
                };
                ctx.node.kernel_lacks(taken, dead).await?;
            }
        }
    }
}

/// Hands out one View; who may speak control by it.
async fn spread(
    ctx: &Listeners,
    view: &Arc<View>,
    told: &mut Told,
    desired: &Desired,
) -> anyhow::Result<Members> {
    // Before a TUN gets an address nobody may announce or dial it.
    let prefixes: Vec<IpNet> = view
        .subnets
        .values()
        .flat_map(|s| {
            s.cidr4
                .map(IpNet::V4)
                .into_iter()
                .chain(s.cidr6.map(IpNet::V6))
        })
        .collect();
    ctx.peers.send(Command::Overlay(prefixes)).await?;
    desired.send_replace((view.generation, view.host.clone()));
    ctx.links.retain(view);
    if let Some(direct) = &ctx.mesh.direct {
        direct.retain(Arc::clone(view)).await;
    }
    let members = members(view, ctx.by_streams);
    let Whereabouts { said, reached } = ctx.node.whereabouts().await?;
    let peers: BTreeSet<PeerId> = said
        .keys()
        .chain(reached.keys())
        .filter(|p| members.contains_key(p))
        .copied()
        .collect();
    for peer in peers {
        let said = said.get(&peer).cloned().unwrap_or_default();
        let Some(first) = told.tell(peer, &said) else {
            continue;
        };
        // An announcement is the word of a member, whatever it is a member of.
        let heard: Vec<Heard> = said.iter().filter_map(|e| Heard::parse(e)).collect();
        let answered = reached.get(&peer).filter(|_| first).into_iter().flatten();
        let answered = answered.filter_map(|e| Heard::parse(e)).collect();
        ctx.peers
            .send(Command::Known {
                peer,
                heard,
                answered,
            })
            .await?;
    }
    told.retain(&members);
    Ok(members)
}

/// Which addresses the address book was last told of each member: a hash of them, for the book holds the addresses. The hash
/// has a key of this process, so that nobody can make two lists that are taken for one.
#[derive(Debug, Default)]
struct Told {
    hashes: BTreeMap<PeerId, u64>,
    key: RandomState,
}

impl Told {
    /// Notes what is told now: none where it is the same as before, else whether nothing was told of this member before.
    fn tell(&mut self, peer: PeerId, said: &[String]) -> Option<bool> {
        let hash = self.key.hash_one(said);
        match self.hashes.insert(peer, hash) {
            Some(before) if before == hash => None,
            before => Some(before.is_none()),
        }
    }

    fn retain(&mut self, members: &Members) {
        self.hashes.retain(|peer, _| members.contains_key(peer));
    }
}

/// Who is let in by the gate: the members, and for [`LAST_WORD`] those who were members a moment ago.
#[derive(Debug, Default)]
struct Leaving {
    now: Members,
    /// Until when who left may still speak control; its packets are refused already.
    left: BTreeMap<PeerId, Instant>,
}

impl Leaving {
    fn follow(&mut self, members: Members, at: Instant) {
        for peer in std::mem::replace(&mut self.now, members).into_keys() {
            if !self.now.contains_key(&peer) {
                self.left.entry(peer).or_insert(at + LAST_WORD);
            }
        }
        self.left.retain(|peer, _| !self.now.contains_key(peer));
    }

    /// When the next one is let in no more.
    fn due(&self) -> Option<Instant> {
        self.left.values().min().copied()
    }

    fn end(&mut self, at: Instant) {
        self.left.retain(|_, until| *until > at);
    }

    fn let_in(&self) -> Members {
        let left = self.left.keys().map(|peer| (*peer, Vec::new()));
        self.now
            .iter()
            .map(|(peer, subnets)| (*peer, subnets.clone()))
            .chain(left)
            .collect()
    }
}

/// Who may speak control, each with the subnets whose packets the View takes from it. A stream for packets that it refuses
/// would be opened and dropped over and over, each time later: when the View takes them again, the other end would wait.
/// Where post-quantum key agreement is required no stream carries packets, for libp2p's keys have none.
fn members(view: &View, by_streams: bool) -> Members {
    let mut members = Members::new();
    for (id, roll) in view.rolls.iter() {
        let carried = view.subnets.get(id);
        for peer in roll.iter() {
            let subnets = members.entry(*peer).or_default();
            subnets.extend(
                carried
                    .filter(|subnet| by_streams && subnet.members.contains(peer))
                    .map(|_| *id),
            );
            // There is one list for each member, and one that grows takes room for four.
            subnets.shrink_to_fit();
        }
    }
    members
}

/// A TUN that died is opened again: the host is told to look.
pub(crate) async fn follow_devices(
    node: Node,
    mut died: mpsc::Receiver<TunDied>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            dead = died.recv() => {
                let Some(TunDied(subnet)) = dead else { return Ok(()) };
                // The link's disappearance wakes the host too; this is for a device that died without one.
                tracing::debug!(%subnet, "device gone");
                node.publish().await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::SubnetId;

    #[test]
    fn the_address_book_is_told_what_is_new_of_who_is_a_member() {
        let (a, subnet) = (PeerId([1; 32]), SubnetId([7; 16]));
        let list = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let mut told = Told::default();
        assert_eq!(
            told.tell(a, &[]),
            Some(true),
            "first, though it says nothing"
        );
        assert_eq!(told.tell(a, &list(&["ab", "c"])), Some(false));
        assert_eq!(told.tell(a, &list(&["ab", "c"])), None);
        assert_eq!(told.tell(a, &list(&["a", "bc"])), Some(false));
        told.retain(&[(a, vec![subnet])].into());
        assert_eq!(told.tell(a, &list(&["a", "bc"])), None);
        told.retain(&Members::new());
        assert_eq!(told.tell(a, &list(&["a", "bc"])), Some(true));
    }

    #[test]
    fn who_is_removed_has_a_last_word_and_holds_nobody_else_up() {
        let (a, b, c) = (PeerId([1; 32]), PeerId([2; 32]), PeerId([3; 32]));
        let subnet = SubnetId([7; 16]);
        let members = |peers: &[PeerId]| {
            peers
                .iter()
                .map(|peer| (*peer, vec![subnet]))
                .collect::<Members>()
        };
        let start = Instant::now();
        let mut leaving = Leaving::default();
        leaving.follow(members(&[a, b]), start);
        assert_eq!(leaving.due(), None);
        leaving.follow(members(&[a, c]), start);
        let mut all = members(&[a, c]);
        all.insert(b, vec![]);
        assert_eq!(leaving.let_in(), all, "who came is let in at once");
        // A later View does not give it a longer one.
        leaving.follow(members(&[a]), start + LAST_WORD / 2);
        assert_eq!(leaving.due(), Some(start + LAST_WORD));
        leaving.end(start + LAST_WORD);
        assert_eq!(
            (leaving.let_in().len(), leaving.due()),
            (2, Some(start + LAST_WORD + LAST_WORD / 2))
        );
        // Who is let in again meanwhile is a member like any other.
        leaving.follow(members(&[a, c]), start + LAST_WORD);
        assert_eq!(leaving.due(), None);
        assert_eq!(leaving.let_in(), members(&[a, c]));
    }
}
