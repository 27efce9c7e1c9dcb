//! A state directory that version 1 wrote: the keys, and the file with one subnet, one join that waits and one former
//! subnet.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use byway::model::followed::{Away, Followed, Why};
use byway::model::health::{Check, Health, Probe};
use byway::model::host::{NetnsRef, Proto, ResolvConf};
use byway::model::id::PeerId;
use byway::model::import::{Contents, Import, Planned};
use byway::model::join::{Ask, Issued};
use byway::model::local::{FormerSubnet, Local, Map, PendingJoin};
use byway::model::members::{Identity, Subnet};
use byway::model::record::{Body, Item, Role, Signed, Term};
use byway::model::state::{Draft, Founding, State};
use byway::model::workload::{Kept, Target, Workload};
use byway::store::{self, Batch, STATE_FILE, Store};
use byway::testing::founding;
use tempfile::TempDir;

use super::messages::{genesis, peer};
use super::{file, hex, unhex, writes};

const TIME: u64 = 1_800_000_000;
/// The keys in a state directory.
const KEYS: [&str; 3] = [store::IDENTITY_FILE, "data.key", "seal.key"];
/// The state file as text: its length, then offset and bytes of each line that is not all zeroes.
const STATE_HEX: &str = "state.redb.hex";
/// Bytes of one line of it.
const LINE: usize = 64;

fn public(secret: &[u8; 32]) -> [u8; 32] {
    x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*secret)).to_bytes()
}

/// The node whose directory it is. Its keys are made where `new` says that there are none yet.
fn identity(dir: &Path, new: bool) -> Identity {
    let secret = |name: &str| store::secret(dir, name, !new).unwrap();
    let seed = store::identity(dir, None, !new).unwrap();
    Identity::new(
        &seed,
        public(&secret("data.key")),
        public(&secret("seal.key")),
    )
}

/// A subnet in which each kind of thing that is saved is there once.
fn subnet(state: &State) -> Subnet {
    let founding = Founding {
        salt: [3; 16],
        ..founding("lab".parse().unwrap(), "a".parse().unwrap())
    };
    let mut subnet = state.found(founding, TIME).unwrap();
    let ask = Ask {
        subnet: subnet.records.id,
        joiner: peer(2),
        data_key: [2; 32],
        seal_key: [3; 32],
        name: "b".parse().unwrap(),
        name_is_default: true,
        ip: None,
        asked: TIME,
        proof: None,
    };
    subnet
        .admit(
            &state.me,
            &ask,
            (Role::Member, Term::Full),
            &BTreeMap::new(),
            TIME,
        )
        .unwrap();
    subnet
        .keep_own(&state.me, &["/ip4/192.0.2.1/tcp/4100".to_owned()], TIME)
        .unwrap();
    let item = Item {
        kind: 40_000,
        slot: b"slot".to_vec(),
        version: 1,
        issued: TIME,
        expires: TIME + 3600,
        data: b"of a later version".to_vec(),
    };
    let item = Signed::new(subnet.records.id, &Body::Item(item), &state.me.key);
    let _ = subnet.records.absorb(item.check().unwrap());
    fill(&mut subnet.local);
    subnet
}

/// What this machine alone knows of a subnet.
fn fill(local: &mut Local) {
    local.hints = vec!["/dns4/a.example/tcp/4100".to_owned()];
    local.reached = BTreeMap::from([(peer(2), vec!["/ip4/192.0.2.2/tcp/4100".to_owned()])]);
    local.invites.push(Issued {
        public: [4; 32],
        seat: 0,
        generation: 1,
        uses: 2,
        used: vec![peer(2)],
        expires: TIME + 60,
        role: Role::Member,
        labels: BTreeMap::from([("zone".to_owned(), "eu".to_owned())]),
        term: Term::Ephemeral,
        revoked: false,
    });
    local.reserved = BTreeMap::from([(peer(3), vec!["10.77.9.0/24".parse().unwrap()])]);
    local.workloads.push(Workload {
        name: "db".parse().unwrap(),
        target: Target::Docker {
            name: "db".to_owned(),
            id: "0123456789abcdef".repeat(4),
        },
        netns: Some(NetnsRef {
            path: "/proc/1/ns/net".into(),
            device: 4,
            inode: 5,
            cookie: Some(6),
        }),
        host_link: "bw0".to_owned(),
        inner_link: "bw-lab".to_owned(),
        addresses: vec!["10.77.1.2".parse().unwrap()],
        resolv_conf: ResolvConf::Replace("/var/lib/docker/resolv.conf".into()),
        mac: Some([2, 0, 0, 0, 0, 1]),
        since: TIME,
    });
    local.maps.push(Map {
        name: "web".parse().unwrap(),
        proto: Proto::Tcp,
        listen: "0.0.0.0".parse().unwrap(),
        ports: "8080".parse().unwrap(),
        target: "db".to_owned(),
        target_port: 80,
        allow: vec!["192.0.2.0/24".parse().unwrap()],
    });
    local.kept.push(Kept {
        name: "old".parse().unwrap(),
        addresses: vec!["10.77.1.3".parse().unwrap()],
    });
    local.denied = BTreeMap::from([(peer(5), TIME + 60)]);
}

fn join() -> PendingJoin {
    PendingJoin {
        subnet: genesis().id(),
        invite: None,
        hints: vec!["/ip4/192.0.2.3/tcp/4100".to_owned()],
        name: "a".parse().unwrap(),
        name_is_default: true,
        alias: Some("work".parse().unwrap()),
        ip: Some("10.77.4.4".parse().unwrap()),
        host: Default::default(),
        allow: Default::default(),
        since: TIME,
        founded_as: None,
        refused: None,
        declared: false,
    }
}

/// Makes the directory anew.
fn write() {
    let (dir, to) = (TempDir::new().unwrap(), file("state-v1"));
    let state = State::new(identity(dir.path(), true));
    let mut draft = Draft::default();
    draft.put(subnet(&state));
    draft.join(genesis().id(), Some(join()));
    let past = FormerSubnet {
        id: genesis().id(),
        name: "gone".parse().unwrap(),
        proof: vec![],
        genesis: vec![],
        untold: true,
    };
    draft.remember(vec![past]);
    let mut batch = Batch::default();
    for (key, value) in draft.changes(&state).into_writes() {
        batch.put_records.push((key, value.unwrap()));
    }
    let store = Store::open(dir.path()).unwrap();
    store.commit(&batch).unwrap();
    drop(store);
    fs::create_dir_all(&to).unwrap();
    for name in KEYS {
        fs::copy(dir.path().join(name), to.join(name)).unwrap();
        fs::set_permissions(to.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let bytes = fs::read(dir.path().join(STATE_FILE)).unwrap();
    let lines = bytes
        .chunks(LINE)
        .zip((0..).step_by(LINE))
        .filter(|(line, _)| line.iter().any(|byte| *byte != 0));
    let lines: String = lines
        .map(|(line, at)| format!("{at} {}\n", hex(line)))
        .collect();
    fs::write(to.join(STATE_HEX), format!("{}\n{lines}", bytes.len())).unwrap();
}

/// The directory to open: keys are for their owner only, and the state file is whole again.
fn copy() -> TempDir {
    let (dir, from) = (TempDir::new().unwrap(), file("state-v1"));
    for name in KEYS {
        fs::copy(from.join(name), dir.path().join(name)).unwrap();
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let text = fs::read_to_string(from.join(STATE_HEX)).unwrap();
    let mut lines = text.lines();
    let mut bytes = vec![0; lines.next().unwrap().parse().unwrap()];
    for (at, line) in lines.map(|line| line.split_once(' ').unwrap()) {
        let (at, line): (usize, Vec<u8>) = (at.parse().unwrap(), unhex(line));
        bytes[at..at + line.len()].copy_from_slice(&line);
    }
    fs::write(dir.path().join(STATE_FILE), bytes).unwrap();
    fs::set_permissions(
        dir.path().join(STATE_FILE),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    dir
}

#[test]
fn a_state_directory_of_version_1_is_read_whole() {
    if writes() {
        write();
    }
    let dir = copy();
    let me = identity(dir.path(), false);
    let store = Store::open(dir.path()).unwrap();
    let saved = store.load().unwrap();
    let (state, damage) = State::load(me.clone(), saved.records);
    assert_eq!(damage, []);
    let (id, held) = state.subnets.iter().next().unwrap();
    assert_eq!(
        (state.subnets.len(), held.records.genesis.owner),
        (1, me.peer)
    );
    // Made anew by these keys it is the same, but for what is random in an announcement.
    let again = subnet(&State::new(me.clone()));
    assert_eq!((again.records.id, &again.local), (*id, &held.local));
    let resolved = held.records.resolve(TIME + 1);
    let members: BTreeMap<PeerId, String> = resolved
        .members
        .iter()
        .map(|(peer, member)| (*peer, member.name.to_string()))
        .collect();
    assert_eq!(
        members,
        BTreeMap::from([(me.peer, "a".to_owned()), (peer(2), "b".to_owned())])
    );
    let mine = &resolved.members.get(&me.peer).unwrap().grant;
    assert_eq!((mine.data_key, mine.seal_key), (me.data_key, me.seal_key));
    assert!(
        held.records
            .announcement(me.peer)
            .is_some_and(|announcement| announcement.endpoints == ["/ip4/192.0.2.1/tcp/4100"])
    );
    assert_eq!(
        held.records.item(me.peer, 40_000, b"slot").unwrap().data,
        b"of a later version"
    );
    assert_eq!(state.joins.get(&genesis().id()), Some(&join()));
    assert_eq!(
        state
            .past
            .iter()
            .map(|past| past.name.to_string())
            .collect::<Vec<_>>(),
        ["gone"]
    );
    // And it is written to as any other.
    let key = ("trial".to_owned(), vec![1]);
    store
        .commit(&Batch {
            put_local: vec![key],
            ..Batch::default()
        })
        .unwrap();
}

#[test]
fn what_version_1_could_not_say_of_a_workload_is_kept_beside_what_it_said() {
    let dir = copy();
    let me = identity(dir.path(), false);
    let load = || {
        let store = Store::open(dir.path()).unwrap();
        let (state, damage) = State::load(me.clone(), store.load().unwrap().records);
        assert_eq!(damage, []);
        (store, state)
    };
    let (store, state) = load();
    let mut held = state.subnets.values().next().unwrap().clone();
    let former = held.local.workloads[0].clone();
    assert!(former.netns.is_some() && former.target.container().is_some());
    let target = Target::of_engine("cni".parse().unwrap(), "0f1e2d".to_owned(), "eth0").unwrap();
    let apart = Workload {
        name: "web".parse().unwrap(),
        target,
        netns: None,
        inner_link: "eth0".into(),
        ..former
    };
    held.local.workloads.push(apart);
    let away = Away {
        why: Why::Stopped,
        since: TIME,
    };
    let followed = Followed {
        engine: Some("/run/docker.sock".into()),
        labels: vec!["com.docker.compose.project=shop".to_owned()],
        paused: false,
        away: Some(away),
    };
    held.local.followed.insert("db".parse().unwrap(), followed);
    let health = Health {
        check: Check::new(Probe::Tcp(5432), Some(5), None).unwrap(),
        unhealthy: Some(TIME),
        by_label: true,
    };
    held.local.health.insert("db".parse().unwrap(), health);
    let planned = Planned {
        addresses: vec!["10.77.1.9".parse().unwrap()],
        containers: ["shop-web-1".parse().unwrap()].into(),
        mac: Some([2, 0, 0, 0, 0, 7]),
        aliases: ["www".to_owned()].into(),
    };
    let now = Contents {
        planned: [("shop".parse().unwrap(), planned)].into(),
        maps: held.local.maps.clone(),
        by_engine: held.local.maps.iter().map(|m| m.name.clone()).collect(),
        leases: vec!["10.77.200.9/32".parse().unwrap()],
    };
    let before = Some(Contents::default());
    let source = "/srv/compose.yml".to_owned();
    held.local.imports.insert(source, Import { now, before });
    let local = held.local.clone();
    let mut draft = Draft::default();
    draft.put(held);
    let mut batch = Batch::default();
    for (key, value) in draft.changes(&state).into_writes() {
        batch.put_records.extend(value.map(|value| (key, value)));
    }
    store.commit(&batch).unwrap();
    drop(store);
    assert_eq!(load().1.subnets.values().next().unwrap().local, local);
}
