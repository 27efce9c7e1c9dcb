//! This node among its peers: the handles that the protocols use, and the tasks that they start.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use super::clock::{self, Clocks};
use super::external::{self, Outside};
use super::inbox::Inbox;
use super::join::{Joins, Surroundings};
use super::lan::LanShared;
use super::measure::Meter;
use super::portmap::PortMap;
use super::presence::{self, Sightings};
use super::records::tell::Comparing;
use super::records::{ranges, summary};
use super::relay::{Relays, offers};
use super::table::Table;
use super::traffic::Traffic;
use super::{Handler, KindTaken, Router, Service, ping};
use crate::api::types::{Error, ErrorKind};
use crate::config::Config;
use crate::datapath::Datapath;
use crate::link::{Links, direct};
use crate::model::error::Code;
use crate::model::id::PeerId;
use crate::model::spread::Spread;
use crate::node::Node;
use crate::p2p;
use crate::wire::service::kind;

/// The parts that a [`Mesh`] is made of.
pub(crate) struct Parts {
    /// The node, which decides and keeps what peers say.
    pub node: Node,
    /// The peers' task, which carries requests and dials.
    pub peers: p2p::Handle,
    /// The links, which lose what a closed connection carried.
    pub links: Links,
    /// The datapath, which takes the data streams.
    pub datapath: Datapath,
    /// The control task of the datagram carrier; none without a UDP port.
    pub direct: Option<direct::Handle>,
    /// The configuration that is in force.
    pub config: watch::Receiver<Arc<Config>>,
    /// What a subnet must leave to this machine.
    pub surroundings: Surroundings,
}

/// What the protocols with peers use; all their tasks share one.
pub(crate) struct Mesh {
    pub node: Node,
    pub peers: p2p::Handle,
    pub links: Links,
    pub datapath: Datapath,
    pub direct: Option<direct::Handle>,
    config: watch::Receiver<Arc<Config>>,
    pub surroundings: Surroundings,
    /// The peers that are connected, seen or gone.
    pub table: Table,
    /// When packets last travelled with each peer.
    pub traffic: Traffic,
    /// When each member was last seen by anybody.
    pub sightings: Arc<Sightings>,
    /// Requests that members have waiting.
    pub inbox: Inbox,
    /// Comparisons of records that run.
    pub comparing: Comparing,
    /// Whom news goes on to, and whose turn it is to be compared with.
    pub spread: Arc<Mutex<Spread>>,
    /// What members ask each other beside records and sessions.
    pub service: Service,
    /// What measures how much a carrier moves.
    pub meter: Meter,
    /// Ports of the router that lead here.
    pub portmap: PortMap,
    /// Where this machine is seen from outside, as those say whom the configuration names.
    pub outside: watch::Sender<Outside>,
    /// This node's own joins, and counts of others'.
    pub joins: Joins,
    /// The search for LAN peers.
    pub lan: LanShared,
    /// Relays, and the legs at them.
    pub relays: Arc<Relays>,
    /// How far the others' clocks differ from this one.
    pub clocks: Arc<Clocks>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Mesh {
    /// Puts them together, with everything that is answered of `/byway/service/1`.
    ///
    /// # Errors
    /// `E-START` where two handlers answer one kind; `E-RANDOM` without randomness.
    pub(crate) fn new(parts: Parts) -> Result<Arc<Mesh>, Error> {
        let Parts {
            node,
            peers,
            links,
            datapath,
            direct,
            config,
            surroundings,
        } = parts;
        let failed = |code: Code, why: String| Error::new(ErrorKind::Failed, code, why);
        let clocks = Arc::default();
        let period = config.borrow().discovery.compare;
        let spread = Spread::new(peers.peer(), period, Instant::now());
        let spread = Arc::new(Mutex::new(spread));
        let meter = Meter::new(links.clone());
        let relays = Arc::new(Relays::new(config.clone(), links.clone()));
        let sightings = Arc::new(Sightings::new(config.borrow().presence));
        let me = peers.peer();
        let router = router(&node, &clocks, &spread, &meter, &relays)
            .and_then(|mut router| {
                let presence = presence::method(&node, &sightings, me);
                router.add(kind::PRESENCE, presence).map(|()| router)
            })
            .map_err(|taken| failed(Code::Start, taken.to_string()))?;
        let seed = getrandom::u64().map_err(|e| failed(Code::Random, e.to_string()))?;
        let service = Service::new(router, node.view(), peers.clone(), seed);
        Ok(Arc::new(Mesh {
            node,
            peers,
            links,
            datapath,
            direct,
            config,
            surroundings,
            table: Table::default(),
            traffic: Traffic::default(),
            sightings,
            inbox: Inbox::default(),
            comparing: Comparing::default(),
            spread,
            service,
            meter,
            portmap: PortMap::default(),
            outside: external::unknown(),
            joins: Joins::default(),
            lan: LanShared::default(),
            relays,
            clocks,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }))
    }

    /// The configuration that is in force now.
    pub(crate) fn config(&self) -> Arc<Config> {
        self.config.borrow().clone()
    }

    /// The configuration in force, for who follows it.
    pub(crate) fn follow_config(&self) -> watch::Receiver<Arc<Config>> {
        self.config.clone()
    }

    /// The members that are connected and that this node holds though nothing travels, in the order of their keys: what is done
    /// from time to time is done with these. The others have their own, and are let go.
    pub(crate) fn partners(&self) -> Vec<PeerId> {
        let mut members = self.table.members();
        members.retain(|peer| self.peers.holds(*peer));
        members
    }

    /// Whether something travels with a member, or its connection is held though nothing does: what is asked of others beside
    /// that would keep a connection that nobody uses.
    pub(crate) fn is_in_use(&self, peer: PeerId) -> bool {
        self.peers.holds(peer) || self.traffic.is_recent(peer, Instant::now())
    }

    /// Runs a task of a protocol, until it is done or the protocols stop.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            // What is left undone is made up for at the next start, as after a crash.
            let _ended_early = stop.run_until_cancelled(task).await;
        });
    }

    /// Ends every task, and waits until all have.
    ///
    /// # Cancel safety
    /// Dropped before it is done, they end all the same.
    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::join!(self.tasks.wait(), self.service.stop());
    }

    /// Has every task end when this is dropped, without waiting for them.
    pub(crate) fn ends_with(&self) -> DropGuard {
        self.stop.clone().drop_guard()
    }
}

/// Who answers which kind.
fn router(
    node: &Node,
    clocks: &Arc<Clocks>,
    spread: &Arc<Mutex<Spread>>,
    meter: &Meter,
    relays: &Arc<Relays>,
) -> Result<Router<Handler>, KindTaken> {
    let mut router = Router::default();
    router.add(kind::PING, ping::method())?;
    router.add(kind::CLOCK, clock::method(clocks))?;
    router.add(kind::RECORDS, summary::method(node, spread))?;
    router.add(kind::RANGES, ranges::method(node))?;
    router.add(kind::MEASURE, meter.method())?;
    router.add(kind::RELAYS, offers::method(relays))?;
    Ok(router)
}
