//! Invites belong to the seat in which they were made.

use super::*;

/// The owner's side of a subnet with the admins 2 and 3, and the node of 2 with an open invite.
async fn invited() -> (Lab, Subnet) {
    let owner = State::new(identity(1));
    let mut subnet = subnet(&owner, 1);
    (2..=3).for_each(|n| admit(&mut subnet, &owner.me, n, Role::Admin));
    let mut draft = Draft::default();
    draft.put(subnet.clone());
    let mut state = State::new(identity(2));
    let _ = state.absorb(draft);
    let lab = start(state);
    let make = |core: &mut Core| {
        core.invite_create(
            "lab",
            3,
            3_600_000,
            (Role::Member, Term::Full),
            BTreeMap::new(),
        )
    };
    lab.node.run(make).await.unwrap().unwrap();
    (lab, subnet)
}

impl Lab {
    /// Whether the invite is open once the node has heard all of this.
    async fn is_open_after(&self, subnet: &Subnet) -> bool {
        self.receive(1, subnet.records.all().cloned().collect())
            .await;
        self.settled().await;
        let id = self.id;
        self.node
            .run(move |core| !core.state.subnets[&id].local.invites[0].revoked)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn an_invite_is_not_revoked_in_the_name_of_another_subnet() {
    let (lab, _) = invited().await;
    let made = lab.node.run(|core| {
        let founding = crate::testing::founding("other".parse().unwrap(), "a".parse().unwrap());
        let mut draft = Draft::default();
        draft.put(core.state.found(founding, FOUNDED).unwrap());
        core.commit(draft).map(drop)
    });
    made.await.unwrap().unwrap();
    let id = lab.node.run(|core| {
        let invites = &core.state.find("lab").unwrap().local.invites;
        data_encoding::HEXLOWER.encode(&invites[0].public)
    });
    let id = id.await.unwrap();
    let revoke = |subnet: &str| lab.node.invite_revoke(Some(subnet.to_owned()), id.clone());
    let error = revoke("other").await.unwrap_err();
    assert_eq!(
        (error.code.as_str(), error.kind),
        ("E-NO-INVITE", ErrorKind::NotFound)
    );
    assert!(error.message.ends_with(" for other"), "{}", error.message);
    revoke("lab").await.unwrap();
    let revoked = |core: &mut Core| core.state.find("lab").unwrap().local.invites[0].revoked;
    assert!(lab.node.run(revoked).await.unwrap());
}

fn peer(n: u8) -> PeerId {
    identity(n).peer
}

#[tokio::test]
async fn an_invite_ends_with_the_removal_of_its_admin_and_stays_so() {
    let (owner, now) = (identity(1), unix_now());
    let (lab, mut subnet) = invited().await;
    subnet.remove(&owner, peer(2), now).unwrap();
    assert!(!lab.is_open_after(&subnet).await);
    admit(&mut subnet, &owner, 2, Role::Admin);
    assert!(
        !lab.is_open_after(&subnet).await,
        "though it is an admin again"
    );
    assert!(subnet.records.roll().is_admin(peer(2)));
}

#[tokio::test]
async fn an_invite_ends_with_the_role_of_its_admin_though_it_heard_of_neither() {
    let (owner, now) = (identity(1), unix_now());
    let (lab, mut subnet) = invited().await;
    subnet.set_admin(&owner, peer(2), false, now).unwrap();
    subnet.set_admin(&owner, peer(2), true, now).unwrap();
    assert!(!lab.is_open_after(&subnet).await);
}

#[tokio::test]
async fn an_invite_ends_where_another_admin_removed_its_admin_and_the_seat_stayed() {
    for by in [3, 1] {
        let (lab, mut subnet) = invited().await;
        subnet.remove(&identity(3), peer(2), unix_now()).unwrap();
        admit(&mut subnet, &identity(by), 2, Role::Member);
        assert!(
            subnet.records.roll().is_admin(peer(2)),
            "it has its seat again"
        );
        assert!(!lab.is_open_after(&subnet).await, "let in by {by}");
    }
}

#[tokio::test]
async fn an_invite_outlives_what_takes_no_seat() {
    let (owner, now) = (identity(1), unix_now());
    let (lab, mut subnet) = invited().await;
    subnet
        .label(
            &owner,
            peer(2),
            &BTreeMap::from([("a".into(), "b".into())]),
            now,
        )
        .unwrap();
    subnet.set_admin(&owner, peer(3), false, now).unwrap();
    assert!(
        lab.is_open_after(&subnet).await,
        "another one's seat and a new grant"
    );
    admit(&mut subnet, &owner, 4, Role::Member);
    subnet.remove(&owner, peer(4), now).unwrap();
    subnet.begin_epoch(&owner, now).unwrap();
    assert!(subnet.records.grants_of(peer(2)).all(|g| g.generation > 1));
    assert!(lab.is_open_after(&subnet).await, "an epoch");
}
