//! Who gets in, and who does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use byway::api::types::{Admission, Cidr, Request, Response, Role, SubnetState};
use byway::model::id::{PeerId, SubnetId};
use byway::model::join::{Ask, Invite, Proof, SignedAsk};
use byway::model::record::{Announcement, Body, Signed};
use byway::p2p::{AskError, Protocol};
use byway::wire::control::{self, ControlRequest, JoinAnswer, JoinRequest};
use byway::wire::service::kind;
use ed25519_dalek::SigningKey;

use super::hostile::Hostile;
use super::node::{Node, PATIENCE, two, until};

const SHORT: Duration = Duration::from_secs(4);

/// A signed question of the peer with this seed.
pub fn ask(
    seed: [u8; 32],
    subnet: byway::model::id::SubnetId,
    name: &str,
    proof: Option<Proof>,
) -> SignedAsk {
    let key = SigningKey::from_bytes(&seed);
    let joiner = PeerId(key.verifying_key().to_bytes());
    let ask = Ask {
        subnet,
        joiner,
        data_key: [1; 32],
        seal_key: [2; 32],
        name: name.parse().unwrap(),
        name_is_default: true,
        ip: None,
        asked: 1,
        proof,
    };
    SignedAsk::new(&ask, &key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn join_by_id_waits_for_approval() {
    let (a, b) = tokio::join!(Node::start("a"), Node::start("b"));
    let created = a.create("lab").await;
    let pending = b
        .join(&created.id.to_string(), &[a.address()], Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(pending.state, SubnetState::Pending);
    assert_eq!(a.requests("lab").await, vec![b.peer]);
    assert_eq!(a.peers("lab").await.len(), 1, "asking lets nobody in");
    a.ok(Request::MemberApprove {
        subnet: "lab".into(),
        member: b.peer.to_string(),
    })
    .await;
    until("the joiner is in", || async {
        b.peers("lab").await.len() == 2
    })
    .await;
    assert!(a.requests("lab").await.is_empty());
    // Saying it again is no error and changes nothing.
    let again = a
        .ok(Request::MemberApprove {
            subnet: "lab".into(),
            member: "b".into(),
        })
        .await;
    assert!(matches!(again, Response::Done(done) if !done.changed));
    let second = b
        .join(&created.id.to_string(), &[a.address()], SHORT)
        .await
        .unwrap();
    assert_eq!(
        second.addresses,
        b.members("lab")
            .await
            .iter()
            .find(|m| m.me)
            .unwrap()
            .addresses
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_found_nobody_is_over() {
    let a = Node::start("a").await;
    a.create("lab").await;
    let (_, invite) = a.invite("lab", 20, 3_600_000, Role::Member).await;
    // Given up at any moment of the way in: what was said is how it is afterwards.
    let mut over = 0;
    for moment in (0..60).step_by(5) {
        let b = Node::start("b").await;
        let outcome = b
            .join(&invite, &[], Duration::from_millis(moment + 1))
            .await;
        match outcome {
            Ok(joined) if joined.state == SubnetState::Ready => continue,
            // Somebody was found, and is asked on.
            Ok(_) => {
                until("the joiner is in", || async {
                    b.members("lab").await.len() > 1
                })
                .await
            }
            Err(error) => {
                assert_eq!(error.code, "E-NOBODY");
                tokio::time::sleep(Duration::from_millis(700)).await;
                assert!(
                    b.members("lab").await.is_empty(),
                    "in after all, after {moment} ms"
                );
                assert!(
                    !a.peers("lab").await.contains(&b.peer),
                    "admitted after all, after {moment} ms"
                );
                b.join(&invite, &[], PATIENCE)
                    .await
                    .expect("the invite is as good as before");
                over += 1;
            }
        }
    }
    assert!(over > 0, "every join was done before it could be given up");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_join_changes_nothing_and_says_what_it_was_asked_in_vain() {
    let (a, b, id) = two().await;
    let again = |name: &str, host: &str| Request::Join {
        target: id.to_string(),
        peers: vec![],
        name: name.parse().ok(),
        alias: name.parse().ok(),
        ip: None,
        host: host.parse().ok(),
        allow: Default::default(),
        timeout_ms: 1000,
        wait: true,
    };
    let ignored = async |request| match b.ok(request).await {
        Response::Joined(joined) => (joined.ignored, joined.host.to_string()),
        other => panic!("{other:?}"),
    };
    assert_eq!(ignored(again("", "")).await, (vec![], "closed".to_owned()));
    let all = ["--name", "--as", "--host"].map(str::to_owned).to_vec();
    assert_eq!(
        ignored(again("other", "open")).await,
        (all, "closed".to_owned())
    );
    assert_eq!(
        ignored(again("lab", "closed")).await.0,
        ["--name"],
        "what is so already is not in vain"
    );
    assert_eq!(a.peers("lab").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_is_taken_back_ends_for_who_waits_and_one_that_a_stop_cuts_off_goes_on() {
    let b = Node::start("b").await;
    let id = SubnetId([7; 16]).to_string();
    let waits = || async {
        b.status()
            .await
            .subnets
            .iter()
            .any(|s| s.state == SubnetState::Pending)
    };
    let taken_back = async {
        until("it waits", waits).await;
        b.ok(Request::Leave { subnet: id.clone() }).await;
    };
    let (told, ()) = tokio::join!(b.join(&id, &[], PATIENCE), taken_back);
    assert_eq!(told.unwrap_err().code, "E-JOIN-OVER");
    assert!(!waits().await);
    tokio::select! {
        told = b.join(&id, &[], PATIENCE) => panic!("{told:?}"),
        () = until("it waits again", waits) => {}
    }
    // Whoever asked has gone; the daemon is stopped in the middle of it.
    let b = b.stop().await.start().await;
    assert_eq!(
        b.status()
            .await
            .subnets
            .iter()
            .map(|s| s.state)
            .collect::<Vec<_>>(),
        [SubnetState::Pending]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn denied_joiner_stays_out() {
    let (a, b) = tokio::join!(Node::start("a"), Node::start("b"));
    let created = a.create("lab").await;
    let _ = b
        .join(&created.id.to_string(), &[a.address()], Duration::ZERO)
        .await;
    until("the question arrived", || async {
        !a.requests("lab").await.is_empty()
    })
    .await;
    a.ok(Request::MemberDeny {
        subnet: "lab".into(),
        member: "b".into(),
    })
    .await;
    let refused = b
        .join(&created.id.to_string(), &[a.address()], PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(refused.code, "E-DENIED");
    assert_eq!(a.peers("lab").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spent_expired_revoked_and_forged_invites_are_refused() {
    let (a, b) = tokio::join!(Node::start("a"), Node::start("b"));
    let created = a.create("lab").await;
    let (id, revoked) = a.invite("lab", 1, 3_600_000, Role::Member).await;
    a.ok(Request::InviteRevoke { invite: id }).await;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_the_join_protocol_only() {
    let (a, b, id) = two().await;
    let seed = [66; 32];
    let mut mallory = Hostile::start(seed);
    // It believes to be a member and tries everything.
    mallory.meet(&a, &[id]).await;
    let compare = ControlRequest::Compare {
        subnet: id,
        hash: [0; 32],
    };
    assert_eq!(mallory.control(&a, &compare).await, Err(AskError::Refused));
    assert_eq!(
        mallory.service(&a, kind::PING, 1, b"").await,
        Err(AskError::Refused)
    );
    let streams =
        mallory.wait(|event| matches!(event, byway::p2p::Event::StreamOut { .. }).then_some(()));
    assert!(
        tokio::time::timeout(Duration::from_millis(300), streams)
            .await
            .is_err()
    );
    // What it may ask tells it nothing about members.
    assert_eq!(
        mallory.join(&a, &JoinRequest::Probe(id)).await,
        JoinAnswer::Known
    );
    let question = JoinRequest::Ask(ask(seed, id, "mallory", None));
    assert_eq!(
        mallory.join(&a, &question).await,
        JoinAnswer::Pending { reached: true }
    );

    // A member's question, overheard while it was asking around, opens nothing for who repeats it.
    let overheard = JoinRequest::Ask(ask(b.stop().await.seed(), id, "b", None));
    let answer = mallory.join(&a, &overheard).await;
    assert!(
        !matches!(answer, JoinAnswer::Admitted { .. }),
        "a replayed question gives the members away"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_one_subnet_are_strangers_in_another() {
    let (a, b, lab) = two().await;
    let home = a
        .create_with("home", Cidr::Auto, Admission::Approve)
        .await
        .unwrap();
    let (_, invite) = a.invite("home", 1, 3_600_000, Role::Member).await;
    let c = Node::start("c").await;
    c.join(&invite, &[], PATIENCE).await.unwrap();
    // b is a member of lab, and asks about home with what c once said.
    let replay = ControlRequest::Forward(JoinRequest::Ask(ask(
        c.stop().await.seed(),
        home.id,
        "c",
        None,
    )));
    let mallory = Hostile::start(b.stop().await.seed());
    mallory.meet(&a, &[lab]).await;
    let compare = ControlRequest::Compare {
        subnet: home.id,
        hash: [0; 32],
    };
    assert_eq!(
        mallory.control(&a, &compare).await,
        Ok(byway::wire::control::ControlAnswer::NotMember)
    );
    let answer = mallory.control(&a, &replay).await;
    assert!(
        !matches!(
            answer,
            Ok(byway::wire::control::ControlAnswer::Forwarded(
                JoinAnswer::Admitted { .. }
            ))
        ),
        "{answer:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_wait_are_capped() {
    let a = Node::start("a").await;
    let created = a.create("lab").await;
    let mut full = 0;
    for n in 0..40u8 {
        let seed = [150 + n; 32];
        let peer = Hostile::start(seed);
        peer.meet(&a, &[]).await;
        match peer
            .join(&a, &JoinRequest::Ask(ask(seed, created.id, "flood", None)))
            .await
        {
            JoinAnswer::Pending { .. } => {}
            JoinAnswer::Refused { code, .. } => {
                assert_eq!(code, "E-REQUESTS-FULL");
                full += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    // All of them come from one source here, and one source has sixteen places.
    assert_eq!((a.requests("lab").await.len(), full), (16, 24));
    // Invites work all the same.
    let b = Node::start("b").await;
    b.join(created.invite.as_deref().unwrap(), &[], PATIENCE)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_and_oversize_requests_are_refused() {
    let (a, b, id) = two().await;
    let mallory = Hostile::start(b.stop().await.seed());
    mallory.meet(&a, &[id]).await;
    let junk: [Vec<u8>; 6] = [
        vec![],
        vec![0xff; 9],
        vec![2; 40],
        vec![1; 60_000],
        vec![3, 3, 3],
        [vec![2], vec![0; 16], vec![0xff; 9]].concat(),
    ];
    // Of the service protocol two are long enough to be frames, of kinds that nobody knows.
    for protocol in [Protocol::Join, Protocol::Control, Protocol::Service] {
        for body in &junk {
            let answer = mallory.raw(&a, protocol, body.clone()).await;
            assert!(!matches!(answer, Err(AskError::Stopped)), "{answer:?}");
        }
    }
    assert!(matches!(
        mallory
            .raw(&a, Protocol::Join, vec![0; 64 * 1024 + 1])
            .await,
        Err(AskError::TooLarge(_))
    ));
    assert!(
        mallory
            .service(&a, kind::PING, 1, b"")
            .await
            .is_ok_and(|answer| answer.result.is_ok())
    );
    let told = a
        .status()
        .await
        .problems
        .into_iter()
        .find(|p| p.code == "E-PEER-REQUESTS")
        .expect("it is counted");
    assert!(told.message.starts_with("16 "), "{}", told.message);
    assert_eq!(a.peers("lab").await.len(), 2);
}

/// Says no to everybody who asks to join anything.
fn naysayer(seed: [u8; 32]) -> (String, Arc<AtomicU32>, tokio_util::sync::DropGuard) {
    let address = format!("/memory/{}", 900_000 + u64::from(seed[0]));
    let mut config = byway::p2p::Config::new(seed);
    config.transport = byway::p2p::TransportKind::Memory;
    config.lan_discovery = false;
    config.listen = vec![address.parse().unwrap()];
    let (handle, mut events, driver) = byway::p2p::start(config).unwrap();
    let said = Arc::new(AtomicU32::new(0));
    let count = said.clone();
    let stop = tokio_util::sync::CancellationToken::new();
    tokio::spawn(driver.run(stop.clone()));
    tokio::spawn(async move {
        let _alive = handle;
        while let Some(event) = events.recv().await {
            if let byway::p2p::Event::Asked { responder, .. } = event {
                let answer = JoinAnswer::Refused {
                    code: "E-DENIED".into(),
                    message: "no".into(),
                };
                responder.respond(byway::wire::control::encode(&answer));
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    (address, said, stop.drop_guard())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_strangers_refusal_ends_no_join() {
    let (a, b, c) = tokio::join!(Node::start("a"), Node::start("b"), Node::start("c"));
    let created = a.create("lab").await;
    let (mean, said, _stop) = naysayer([41; 32]);
    // By ID: someone who may decide says "wait", and that counts.
    let pending = b
        .join(
            &created.id.to_string(),
            &[mean.clone(), a.address()],
            Duration::ZERO,
        )
        .await
        .unwrap();
    assert_eq!(pending.state, SubnetState::Pending);
    until("the question arrived", || async {
        a.requests("lab").await == vec![b.peer]
    })
    .await;
    until("it was refused often enough to believe it", || async {
        said.load(Ordering::Relaxed) >= 4
    })
    .await;
    a.ok(Request::MemberApprove {
        subnet: "lab".into(),
        member: "b".into(),
    })
    .await;
    until("b is in", || async { b.peers("lab").await.len() == 2 }).await;
    // By invite: the issuer is found later than the stranger.
    let mut invite = Invite::parse(created.invite.as_deref().unwrap()).unwrap();
    invite.addresses = vec![];
    let text = invite.to_text();
    let early = c.join(&text, std::slice::from_ref(&mean), SHORT).await;
    assert!(
        !matches!(&early, Err(e) if e.code == "E-DENIED"),
        "{early:?}"
    );
    c.join(&text, &[mean, a.address()], PATIENCE).await.unwrap();
    assert_eq!(a.peers("lab").await.len(), 3);
}
