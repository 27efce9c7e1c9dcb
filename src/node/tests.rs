//! Nodes with a real store, and members whose keys are known.

mod admitted;
mod companions;
mod cost;
mod engines;
mod health;
mod imports;
mod invites;
mod lasting;
mod left;
mod lone;
mod lost;
mod machine;
mod networks;
mod noticed;
mod own;
mod saving;
mod told;
mod twice;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::*;
use crate::model::join::Ask;
use crate::model::members::{Identity, Subnet};
use crate::model::record::{Admission, Announcement, Body, Role, Signed, Term, Verified};
use crate::model::source::Payer;
use crate::model::state::Founding;
use crate::model::zone::RecordData;
use crate::wire::control::JoinAnswer;

/// Part of what the subnet's ID follows from.
const FOUNDED: u64 = 1_795_000_000;

fn identity(n: u8) -> Identity {
    Identity::new(&[n; 32], [n; 32], [n.wrapping_add(128); 32])
}

struct Lab {
    _dir: tempfile::TempDir,
    node: Node,
    pushes: mpsc::UnboundedReceiver<Push>,
    id: SubnetId,
}

/// An owner's node with `members` members.
async fn lab(members: u8) -> Lab {
    let lab = start(State::new(identity(1)));
    let made = lab.node.run(move |core| {
        let subnet = subnet(&core.state, members);
        let mut draft = Draft::default();
        draft.put(subnet);
        core.commit(draft).map(drop)
    });
    made.await.unwrap().unwrap();
    lab
}

/// A plain member's node, the second one, in a subnet of `members`.
async fn lab_of_a_member(members: u8) -> Lab {
    let mut draft = Draft::default();
    draft.put(subnet(&State::new(identity(1)), members));
    let mut state = State::new(identity(2));
    let _ = state.absorb(draft);
    start(state)
}

fn start(state: State) -> Lab {
    let dir = tempfile::TempDir::new().unwrap();
    let parts = Parts {
        state,
        damage: vec![],
        store: Store::open(dir.path()).unwrap(),
        here: Here::default(),
        node_name: "a".parse().unwrap(),
    };
    let (node, pushes) = Node::start(parts).unwrap();
    Lab {
        _dir: dir,
        node,
        pushes,
        id: subnet(&State::new(identity(1)), 1).records.id,
    }
}

/// The owner's subnet with that many members.
fn subnet(owner: &State, members: u8) -> Subnet {
    let founding = Founding {
        cidr6: None,
        ..crate::testing::founding("lab".parse().unwrap(), "a".parse().unwrap())
    };
    let mut subnet = owner.found(founding, FOUNDED).unwrap();
    (2..=members).for_each(|n| admit(&mut subnet, &owner.me, n, Role::Member));
    subnet
}

fn admit(subnet: &mut Subnet, by: &Identity, n: u8, role: Role) {
    let (who, now) = (identity(n), unix_now());
    let ask = Ask {
        subnet: subnet.records.id,
        joiner: who.peer,
        data_key: who.data_key,
        seal_key: who.seal_key,
        name: format!("m{n}").parse().unwrap(),
        name_is_default: true,
        ip: None,
        asked: now,
        proof: None,
    };
    subnet
        .admit(by, &ask, (role, Term::Full), &BTreeMap::new(), now)
        .unwrap();
}

fn announcement(id: SubnetId, by: u8, version: u64) -> Signed {
    let body = Announcement {
        version,
        issued: 1,
        ..Announcement::default()
    };
    Signed::new(id, &Body::Announcement(body), &identity(by).key)
}

fn from(n: u8) -> Lane {
    Lane::Peer {
        from: Payer::Member(identity(n).peer),
        urgent: false,
        cost: 1,
    }
}

impl Lab {
    async fn receive(&self, by: u8, records: Vec<Signed>) -> Verdict {
        let id = self.id;
        let good = self.node.checker().records(id, records).await.good;
        self.node
            .run_in(from(by), move |core| {
                core.receive(id, good, Some(identity(by).peer))
            })
            .await
            .unwrap()
    }

    async fn settled(&self) {
        assert!(self.node.saved(from(200)).await.unwrap());
    }
}

#[tokio::test]
async fn own_commands_pass_a_full_queue() {
    let lab = lab(3).await;
    // One member's jobs keep the thread busy; none of them ends before all have come.
    let (done, (open, shut)) = (
        Arc::new(AtomicU32::new(0)),
        std::sync::mpsc::channel::<()>(),
    );
    let shut = Arc::new(parking_lot::Mutex::new(shut));
    let busy: Vec<_> = (0..16)
        .map(|_| {
            let (node, done, shut) = (lab.node.clone(), Arc::clone(&done), Arc::clone(&shut));
            tokio::spawn(async move {
                let job = move |_: &mut Core| {
                    let _ = shut.lock().recv_timeout(Duration::from_secs(10));
                    done.fetch_add(1, Ordering::Relaxed);
                };
                node.run_in(from(2), job).await
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let seen = Arc::clone(&done);
    let mut own = std::pin::pin!(lab.node.run(move |_| seen.load(Ordering::Relaxed)));
    assert!(
        futures::poll!(&mut own).is_pending(),
        "it waits for the job under way"
    );
    drop(open);
    let before = own.await.unwrap();
    assert!(
        before <= 2,
        "an own command waits for one job, not for {before} of sixteen"
    );
    let refused = lab.node.run_in(from(2), |_| ()).await;
    let others = lab.node.run_in(from(3), |_| ()).await;
    assert!(others.is_ok() && (refused.is_ok() || refused.is_err_and(|e| e.code == "E-BUSY")));
    for job in busy {
        drop(job.await.unwrap());
    }
}

#[tokio::test]
async fn a_node_that_ended_answers_everybody() {
    let lab = lab(2).await;
    lab.node.close().await;
    assert_eq!(lab.node.run(|_| ()).await.unwrap_err().code, "E-STOPPING");
    assert_eq!(
        lab.node.run_in(from(2), |_| ()).await.unwrap_err().code,
        "E-STOPPING"
    );
}
