//! One daemon in memory, and what tests ask of it.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use byway::api::client::Client;
use byway::api::types::{
    Admission, Cidr, Created, Error, Joined, MemberInfo, Request, Response, Role, Status,
};
use byway::config::Config;
use byway::daemon::{Platform, serve};
use byway::model::host::TunConfig;
use byway::model::id::{PeerId, SubnetId};
use byway::tun::Tun;
use byway::tun::memory::{MemoryKernel, Segmentation, pair};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// How long anything may take that the daemon promises in seconds.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Numbers of the listeners, unique in this process; a daemon keeps its own when it is started again.
static NEXT: AtomicU64 = AtomicU64::new(1000);

type Taps = Arc<Mutex<BTreeMap<SubnetId, MemoryKernel>>>;

/// What outlives a daemon: its state directory, address and name.
pub struct Home {
    dir: TempDir,
    number: u64,
    name: String,
}

/// A running daemon.
pub struct Node {
    home: Home,
    client: Client,
    taps: Taps,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
    pub peer: PeerId,
}

impl Home {
    pub fn new(name: &str) -> Home {
        let dir = TempDir::new().unwrap();
        Home {
            dir,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
        }
    }

    pub fn at(dir: TempDir, name: &str) -> Home {
        Home {
            dir,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            name: name.to_owned(),
        }
    }

    /// A file beside its state directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The seed of the identity, as whoever owns this machine could read it.
    pub fn seed(&self) -> [u8; 32] {
        *byway::store::identity(&self.dir.path().join("state"), None, true).unwrap()
    }

    /// The public half of the X25519 key in a file of the state directory.
    pub fn public(&self, name: &str) -> [u8; 32] {
        let secret = byway::store::secret(&self.dir.path().join("state"), name, true).unwrap();
        x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*secret)).to_bytes()
    }

    pub async fn start(self) -> Node {
        self.start_with(|_| {}).await
    }

    /// Starts it with a configuration that was changed.
    pub async fn start_with(self, change: impl FnOnce(&mut Config)) -> Node {
        let mut config = Config::defaults(&self.name);
        config.state_dir = self.dir.path().join("state");
        config.socket = self.dir.path().join("s");
        config.listen = vec![format!("/memory/{}", self.number)];
        config.lan_discovery = false;
        change(&mut config);
        let client = Client::new(&config.socket);
        let taps = Taps::default();
        let opened = taps.clone();
        let platform = Platform::Memory(Arc::new(move |tun: &TunConfig| -> Arc<dyn Tun> {
            let (device, kernel) = pair(Segmentation::Offload);
            opened.lock().unwrap().insert(tun.subnet, kernel);
            Arc::new(device)
        }));
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(config, platform, stop.clone()));
        let deadline = Instant::now() + PATIENCE;
        let peer = loop {
            match client.call(&Request::Id).await {
                Ok(Response::Id(id)) if !id.addresses.is_empty() => break id.peer_id,
                _ => assert!(
                    !task.is_finished(),
                    "{} did not start: {:?}",
                    self.name,
                    task.await
                ),
            }
            assert!(
                Instant::now() < deadline,
                "{} did not start in time",
                self.name
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        Node {
            home: self,
            client,
            taps,
            stop,
            task,
            peer,
        }
    }
}

impl Node {
    pub async fn start(name: &str) -> Node {
        Home::new(name).start().await
    }

    /// A file beside its state directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.file(name)
    }

    /// Where it listens, without its identity.
    pub fn address(&self) -> String {
        format!("/memory/{}", self.home.number)
    }

    pub async fn stop(self) -> Home {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
        self.home
    }

    pub async fn call(&self, request: Request) -> Result<Response, Error> {
        self.client.call(&request).await
    }

    /// A request that has to succeed.
    pub async fn ok(&self, request: Request) -> Response {
        let text = format!("{request:?}");
        self.call(request)
            .await
            .unwrap_or_else(|e| panic!("{}: {text}: {e}", self.home.name))
    }

    pub async fn create(&self, name: &str) -> Created {
        self.create_with(name, Cidr::Auto, Admission::Approve)
            .await
            .unwrap()
    }

    pub async fn create_with(
        &self,
        name: &str,
        cidr4: Cidr<ipnet::Ipv4Net>,
        admission: Admission,
    ) -> Result<Created, Error> {
        let request = Request::Create {
            name: name.parse().unwrap(),
            cidr4,
            cidr6: Cidr::Auto,
            block4: None,
            admission,
            domain: None,
            grant_life_s: None,
            host: Default::default(),
        };
        match self.call(request).await? {
            Response::Created(created) => Ok(created),
            other => panic!("{other:?}"),
        }
    }

    /// Joins by invite or ID. Waits to be let in as long as `limit`.
    pub async fn join(
        &self,
        target: &str,
        peers: &[String],
        limit: Duration,
    ) -> Result<Joined, Error> {
        let request = Request::Join {
            target: target.to_owned(),
            peers: peers.to_vec(),
            name: None,
            alias: None,
            ip: None,
            host: Default::default(),
            allow: Default::default(),
            timeout_ms: limit.as_millis() as u64,
            wait: !limit.is_zero(),
        };
        match self.call(request).await? {
            Response::Joined(joined) => Ok(joined),
            other => panic!("{other:?}"),
        }
    }

    pub async fn invite(
        &self,
        subnet: &str,
        uses: u32,
        expires_ms: u64,
        role: Role,
    ) -> (String, String) {
        let request = Request::InviteCreate {
            subnet: subnet.to_owned(),
            uses,
            expires_ms,
            role,
            labels: BTreeMap::new(),
            ephemeral: false,
        };
        match self.ok(request).await {
            Response::Invite(created) => (created.id, created.invite),
            other => panic!("{other:?}"),
        }
    }

    pub async fn members(&self, subnet: &str) -> Vec<MemberInfo> {
        match self
            .call(Request::MemberLs {
                subnet: subnet.to_owned(),
            })
            .await
        {
            Ok(Response::Members { members }) => members,
            _ => vec![],
        }
    }

    pub async fn peers(&self, subnet: &str) -> BTreeSet<PeerId> {
        self.members(subnet)
            .await
            .into_iter()
            .map(|m| m.peer_id)
            .collect()
    }

    /// `NAME TYPE VALUE` of every name of a subnet.
    pub async fn names(&self, subnet: &str) -> BTreeSet<String> {
        match self
            .call(Request::DnsLs {
                subnet: subnet.to_owned(),
            })
            .await
        {
            Ok(Response::Dns { records }) => records
                .into_iter()
                .map(|r| format!("{} {} {}", r.name, r.r#type, r.value))
                .collect(),
            _ => BTreeSet::new(),
        }
    }

    pub async fn requests(&self, subnet: &str) -> Vec<PeerId> {
        match self
            .ok(Request::MemberRequests {
                subnet: subnet.to_owned(),
            })
            .await
        {
            Response::Requests { requests } => requests.into_iter().map(|r| r.peer_id).collect(),
            other => panic!("{other:?}"),
        }
    }

    pub async fn status(&self) -> Status {
        match self.ok(Request::Status { subnet: None }).await {
            Response::Status(status) => *status,
            other => panic!("{other:?}"),
        }
    }

    /// Packets of a subnet dropped for a reason.
    pub async fn drops(&self, id: SubnetId, reason: &str) -> u64 {
        let status = self.status().await;
        let subnet = status.subnets.into_iter().find(|s| s.id == id);
        subnet
            .and_then(|s| s.drops.get(reason).copied())
            .unwrap_or(0)
    }

    /// Own address in a subnet, version 4 or 6.
    pub async fn own(&self, subnet: &str, v4: bool) -> IpAddr {
        let members = self.members(subnet).await;
        let me = members.iter().find(|m| m.me).expect("a member");
        *me.addresses
            .iter()
            .find(|a| a.is_ipv4() == v4)
            .expect("an address")
    }

    /// Whether packets have a way to a peer.
    pub async fn reaches(&self, peer: PeerId) -> bool {
        let status = self.status().await;
        status
            .subnets
            .iter()
            .flat_map(|s| &s.peers)
            .any(|p| p.peer_id == peer && p.path.carrier.is_some())
    }

    /// The kernel's end of a subnet's TUN.
    pub fn tap(&self, id: SubnetId) -> MemoryKernel {
        self.taps.lock().unwrap().get(&id).expect("a TUN").clone()
    }
}

/// Waits until something holds.
pub async fn within<F: Future<Output = bool>>(
    limit: Duration,
    what: &str,
    mut holds: impl FnMut() -> F,
) {
    let deadline = Instant::now() + limit;
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Waits until something holds.
pub async fn until<F: Future<Output = bool>>(what: &str, holds: impl FnMut() -> F) {
    within(PATIENCE, what, holds).await;
}

/// An owner with subnet `lab`, and a member of it.
pub async fn two() -> (Node, Node, SubnetId) {
    let (a, b) = tokio::join!(Node::start("a"), Node::start("b"));
    let created = a.create("lab").await;
    b.join(created.invite.as_deref().unwrap(), &[], PATIENCE)
        .await
        .unwrap();
    until("both see each other", || async {
        a.reaches(b.peer).await && b.reaches(a.peer).await
    })
    .await;
    (a, b, created.id)
}

/// An owner with subnet `lab`, and more members, all connected.
pub async fn lab(names: &[&str]) -> (Vec<Node>, SubnetId) {
    let mut nodes = Vec::new();
    for name in names {
        nodes.push(Node::start(name).await);
    }
    let created = nodes[0].create("lab").await;
    let uses = names.len() as u32;
    let (_, invite) = nodes[0].invite("lab", uses, 3_600_000, Role::Member).await;
    for node in &nodes[1..] {
        node.join(&invite, &[], PATIENCE).await.unwrap();
    }
    let all: BTreeSet<PeerId> = nodes.iter().map(|n| n.peer).collect();
    for node in &nodes {
        until("everybody sees everybody", || async {
            node.peers("lab").await == all
        })
        .await;
    }
    (nodes, created.id)
}
