//! Invites: whom they let in, how often, and who may pass a joiner on.

use byway::api::types::{Request, Role};
use byway::model::join::{Invite, Proof};
use byway::model::record::{Announcement, Body, Signed};
use byway::p2p::Protocol;
use byway::wire::control::{self, JoinAnswer, JoinRequest};
use ed25519_dalek::SigningKey;

use super::hostile::Hostile;
use super::joining::ask;
use super::node::{Node, PATIENCE, two, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spent_expired_revoked_and_forged_invites_are_refused() {
    let (a, b) = tokio::join!(Node::start("a"), Node::start("b"));
    let created = a.create("lab").await;
    let (id, revoked) = a.invite("lab", 1, 3_600_000, Role::Member).await;
    let revoke = Request::InviteRevoke {
        subnet: None,
        invite: id,
    };
    a.ok(revoke).await;
    assert_eq!(
        b.join(&revoked, &[], PATIENCE).await.unwrap_err().code,
        "E-INVITE-REVOKED"
    );

    let (_, short) = a.invite("lab", 1, 1000, Role::Member).await;
    let mut long = Invite::parse(&short).unwrap();
    until("it expires", || async {
        byway::node::unix_now() >= long.expires
    })
    .await;
    assert_eq!(
        b.join(&short, &[], PATIENCE).await.unwrap_err().code,
        "E-INVITE-EXPIRED"
    );
    // A joiner who writes a later date into it gains nothing: the issuer has its own.
    long.expires += 3600;
    assert_eq!(
        b.join(&long.to_text(), &[], PATIENCE)
            .await
            .unwrap_err()
            .code,
        "E-INVITE-EXPIRED"
    );

    let mut forged = Invite::parse(created.invite.as_deref().unwrap()).unwrap();
    forged.secret[0] ^= 1;
    assert_eq!(
        b.join(&forged.to_text(), &[], PATIENCE)
            .await
            .unwrap_err()
            .code,
        "E-INVITE-UNKNOWN"
    );
    assert_eq!(
        b.join("byway1nonsense", &[], PATIENCE)
            .await
            .unwrap_err()
            .code,
        "E-INVITE-MALFORMED"
    );
    assert_eq!(
        a.peers("lab").await.len(),
        1,
        "none of these let anybody in"
    );

    b.join(created.invite.as_deref().unwrap(), &[], PATIENCE)
        .await
        .unwrap();
    let c = Node::start("c").await;
    assert_eq!(
        c.join(created.invite.as_deref().unwrap(), &[], PATIENCE)
            .await
            .unwrap_err()
            .code,
        "E-INVITE-USED"
    );
    // A removed member does not come back by an invite, its own or a fresh one; an approval lets it in.
    a.ok(Request::MemberRemove {
        subnet: "lab".into(),
        member: "b".into(),
    })
    .await;
    until("it knows", || async { b.peers("lab").await.len() < 2 }).await;
    let (_, fresh) = a.invite("lab", 1, 3_600_000, Role::Member).await;
    assert_eq!(
        b.join(&fresh, &[], PATIENCE).await.unwrap_err().code,
        "E-REMOVED"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_with_invites_are_counted() {
    let a = Node::start("a").await;
    let created = a.create("lab").await;
    let seed = [77; 32];
    let mallory = Hostile::start(seed);
    mallory.meet(&a, &[]).await;
    let nonce = JoinRequest::Nonce {
        subnet: created.id,
        issuer: a.peer,
        joiner: mallory.peer(),
    };
    let mut refused = 0;
    for _ in 0..10 {
        if let JoinAnswer::Refused { code, .. } = mallory.join(&a, &nonce).await {
            assert_eq!(code, "E-INVITE-RATE");
            refused += 1;
        }
    }
    assert_eq!(refused, 5, "five attempts a minute");
    // Nobody uses up the attempts of another.
    let b = Node::start("b").await;
    let stolen = JoinRequest::Nonce {
        subnet: created.id,
        issuer: a.peer,
        joiner: b.peer,
    };
    for _ in 0..10 {
        assert!(
            !matches!(mallory.join(&a, &stolen).await, JoinAnswer::Nonce(_)),
            "a nonce is for who asks"
        );
    }
    b.join(created.invite.as_deref().unwrap(), &[], PATIENCE)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_use_invite_has_exactly_one_winner() {
    let a = Node::start("a").await;
    let created = a.create("lab").await;
    let invite = Invite::parse(created.invite.as_deref().unwrap()).unwrap();
    let mut racers = Vec::new();
    for n in 0..24u8 {
        let seed = [100 + n; 32];
        let racer = Hostile::start(seed);
        racer.meet(&a, &[]).await;
        racers.push((seed, racer));
    }
    let races = racers.iter().map(|(seed, racer)| async {
        let nonce = JoinRequest::Nonce {
            subnet: created.id,
            issuer: a.peer,
            joiner: racer.peer(),
        };
        let JoinAnswer::Nonce(nonce) = racer.join(&a, &nonce).await else {
            panic!("no nonce")
        };
        let proof = Proof::new(&invite, racer.peer(), nonce);
        racer
            .join(
                &a,
                &JoinRequest::Ask(ask(*seed, created.id, "racer", Some(proof))),
            )
            .await
    });
    let answers = futures::future::join_all(races).await;
    let winners = answers
        .iter()
        .filter(|a| matches!(a, JoinAnswer::Admitted { .. }))
        .count();
    assert_eq!(winners, 1);
    let losers = answers
        .iter()
        .filter(|a| matches!(a, JoinAnswer::Refused { code, .. } if code == "E-INVITE-USED"));
    assert_eq!(losers.count(), 23);
    assert_eq!(a.peers("lab").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_could_not_come_may_use_its_invite_again_and_nobody_else_may() {
    let a = Node::start("a").await;
    let created = a.create("lab").await;
    let invite = Invite::parse(created.invite.as_deref().unwrap()).unwrap();
    let (seed, other_seed) = ([77; 32], [78; 32]);
    let (joiner, other) = (Hostile::start(seed), Hostile::start(other_seed));
    joiner.meet(&a, &[]).await;
    other.meet(&a, &[]).await;
    assert_eq!(admitted(&a, &invite, (&joiner, seed)).await, Ok(()));
    assert_eq!(
        admitted(&a, &invite, (&other, other_seed)).await,
        Err("E-INVITE-USED".to_owned())
    );
    let goodbye = Announcement {
        version: 1,
        issued: byway::node::unix_now(),
        left: Some(1),
        ..Announcement::default()
    };
    let goodbye = Signed::new(
        created.id,
        &Body::Announcement(goodbye),
        &SigningKey::from_bytes(&seed),
    );
    let decline = control::encode(&JoinRequest::Decline(goodbye));
    until("it has given back what it was given", || async {
        let answer = joiner.raw(&a, Protocol::Join, decline.clone()).await;
        answer.is_ok_and(|bytes| control::decode(&bytes) == Ok(JoinAnswer::Known))
    })
    .await;
    until("it is no member any more", || async {
        a.peers("lab").await.len() == 1
    })
    .await;
    assert_eq!(
        admitted(&a, &invite, (&other, other_seed)).await,
        Err("E-INVITE-USED".to_owned())
    );
    drop(joiner);
    let again = Hostile::start(seed);
    again.meet(&a, &[]).await;
    assert_eq!(admitted(&a, &invite, (&again, seed)).await, Ok(()));
}

/// Whether an invite lets a joiner in; the code where it does not.
async fn admitted(
    at: &Node,
    invite: &Invite,
    (joiner, seed): (&Hostile, [u8; 32]),
) -> Result<(), String> {
    let nonce = JoinRequest::Nonce {
        subnet: invite.subnet,
        issuer: at.peer,
        joiner: joiner.peer(),
    };
    let JoinAnswer::Nonce(nonce) = joiner.join(at, &nonce).await else {
        panic!("no nonce")
    };
    let proof = Proof::new(invite, joiner.peer(), nonce);
    match joiner
        .join(
            at,
            &JoinRequest::Ask(ask(seed, invite.subnet, "joiner", Some(proof))),
        )
        .await
    {
        JoinAnswer::Admitted { .. } => Ok(()),
        JoinAnswer::Refused { code, .. } => Err(code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_may_pass_through_another_member_and_name_an_admin() {
    let (a, b, _) = two().await;
    let (_, text) = a.invite("lab", 2, 3_600_000, Role::Admin).await;
    let mut invite = Invite::parse(&text).unwrap();
    // All it knows is where b is; only a may admit.
    invite.addresses = vec![b.address()];
    let c = Node::start("c").await;
    c.join(&invite.to_text(), &[b.address()], PATIENCE)
        .await
        .unwrap();
    until("it is an admin", || async {
        a.members("lab")
            .await
            .iter()
            .any(|m| m.peer_id == c.peer && m.role == Role::Admin)
            && c.members("lab")
                .await
                .iter()
                .any(|m| m.me && m.role == Role::Admin)
    })
    .await;
    // An admin admits.
    let (_, by_admin) = c.invite("lab", 1, 3_600_000, Role::Member).await;
    let d = Node::start("d").await;
    d.join(&by_admin, &[], PATIENCE).await.unwrap();
    for node in [&a, &b, &c, &d] {
        until("all four", || async { node.peers("lab").await.len() == 4 }).await;
    }
    // A member does not.
    let refused = Request::InviteCreate {
        subnet: "lab".into(),
        uses: 1,
        expires_ms: 1000,
        role: Role::Member,
        labels: Default::default(),
        ephemeral: false,
    };
    assert_eq!(b.call(refused).await.unwrap_err().code, "E-NOT-ADMIN");
}
