//! Strangers: what they may ask, how many of them may wait, and what their words are worth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use byway::api::types::{Admission, Cidr, Request, Role, SubnetState};
use byway::model::join::Invite;
use byway::p2p::{AskError, Protocol};
use byway::wire::control::{ControlRequest, JoinAnswer, JoinRequest};
use byway::wire::service::kind;

use super::hostile::Hostile;
use super::joining::{SHORT, ask};
use super::node::{Node, PATIENCE, two, until};

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
