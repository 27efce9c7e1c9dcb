//! What a founder, and the name of somebody who asks, can and cannot do to a person who decides.

use std::time::Duration;

use byway::api::types::{Admission, Cidr, Created, Request, Response, SubnetState};
use byway::model::join::lookup;
use byway::model::policy::Allowed;
use byway::wire::control::{JoinAnswer, JoinRequest};

use super::hostile::Hostile;
use super::joining::ask;
use super::node::{Node, until};

/// A key whose peer ID ends with "anna": 13 million tries found it.
const ENDS_WITH_ANNA: [u8; 32] = [
    0x29, 0xec, 0xc1, 0x6c, 0x27, 0x51, 0x8b, 0xac, 0xe2, 0x37, 0xfc, 0xf6, 0xed, 0x50, 0xf0, 0x50,
    0x14, 0xd3, 0x46, 0x9f, 0x03, 0xdd, 0x5d, 0xb5, 0x02, 0x47, 0x5c, 0xa5, 0x43, 0xde, 0x0b, 0x63,
];

async fn public_subnet(founder: &Node) -> Created {
    let request = Request::Create {
        name: "game".parse().unwrap(),
        cidr4: Cidr::Given("140.82.0.0/16".parse().unwrap()),
        cidr6: Cidr::Given("2a00:1450::/40".parse().unwrap()),
        block4: None,
        admission: Admission::Approve,
        domain: Some("github.com".into()),
        grant_life_s: None,
        host: Default::default(),
    };
    match founder.ok(request).await {
        Response::Created(created) => created,
        other => panic!("{other:?}"),
    }
}

fn join(target: &str, peers: &[String], allow: Allowed) -> Request {
    Request::Join {
        target: target.into(),
        peers: peers.to_vec(),
        name: None,
        alias: None,
        ip: None,
        host: Default::default(),
        allow,
        timeout_ms: 15_000,
        wait: true,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn public_prefixes_and_domains_need_a_persons_word_and_a_refusal_uses_nothing_up() {
    let (evil, b) = tokio::join!(Node::start("evil"), Node::start("b"));
    let created = public_subnet(&evil).await;
    let flags =
        "--allow-prefix 140.82.0.0/16 --allow-prefix 2a00:1450::/40 --allow-domain github.com";
    assert_eq!(
        created.join_flags, flags,
        "who founds it is told what it takes"
    );
    for (target, peers) in [
        (created.invite.clone().unwrap(), vec![]),
        (created.id.to_string(), vec![evil.address()]),
    ] {
        let refused = b
            .call(join(&target, &peers, Allowed::default()))
            .await
            .unwrap_err();
        assert_eq!(
            (refused.code.as_str(), refused.kind.exit_code()),
            ("E-JOIN-POLICY", 7)
        );
        assert!(
            refused.message.contains(flags) && refused.hint.ends_with(flags),
            "{refused} {}",
            refused.hint
        );
    }
    let part = Allowed {
        prefixes: vec!["140.82.0.0/16".parse().unwrap()],
        domains: vec!["github.com".into()],
    };
    let refused = b
        .call(join(created.invite.as_deref().unwrap(), &[], part))
        .await
        .unwrap_err();
    assert!(
        refused
            .message
            .ends_with("needs --allow-prefix 2a00:1450::/40"),
        "what is missing: {refused}"
    );
    assert!(
        refused.hint.ends_with(flags),
        "the line to type has all of them: {}",
        refused.hint
    );
    assert!(evil.requests("game").await.is_empty(), "nothing was asked");
    assert_eq!(evil.peers("game").await.len(), 1);
    assert!(
        b.status().await.subnets.is_empty(),
        "and nothing is left here"
    );
    // The same invite, with a person's word.
    let allow = Allowed {
        prefixes: vec![
            "140.82.0.0/16".parse().unwrap(),
            "2a00:1450::/32".parse().unwrap(),
        ],
        domains: vec!["github.com".into()],
    };
    let Response::Joined(joined) = b
        .ok(join(created.invite.as_deref().unwrap(), &[], allow))
        .await
    else {
        panic!("not joined")
    };
    assert_eq!(joined.state, SubnetState::Ready);
    let terms = joined.terms.expect("what was joined is shown");
    assert_eq!(
        (terms.cidr4, terms.domain.as_str()),
        (created.cidr4, "github.com")
    );
    assert_eq!(
        terms.owner_fingerprint,
        byway::model::join::fingerprint(evil.peer)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_genesis_is_told_to_who_knows_the_id_and_to_nobody_else() {
    let a = Node::start("a").await;
    let created = a.create("lab").await;
    let stranger = Hostile::start([7; 32]);
    stranger.meet(&a, &[]).await;
    let JoinAnswer::Genesis(bytes) = stranger
        .join(&a, &JoinRequest::Genesis(lookup(created.id)))
        .await
    else {
        panic!("not told")
    };
    let genesis = byway::model::record::Genesis::parse(&bytes).unwrap();
    assert_eq!((genesis.id(), bytes.len() < 512), (created.id, true));
    // The ID itself is not what is asked for, and a subnet is found by nothing less than its whole ID.
    for wrong in [
        created.id.0,
        [0; 16],
        lookup(byway::model::id::SubnetId([1; 16])),
    ] {
        assert_eq!(
            stranger.join(&a, &JoinRequest::Genesis(wrong)).await,
            JoinAnswer::Unknown
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_joiner_names_the_subnet_only_to_who_knows_it() {
    let (a, b) = tokio::join!(Node::start("a"), Node::start("b"));
    let created = a.create("lab").await;
    let mut nosy = Hostile::start([8; 32]);
    nosy.meet(&b, &[]).await;
    let asked = tokio::spawn(async move {
        let mut bodies = Vec::new();
        let heard = |event| match event {
            byway::p2p::Event::Asked { body, .. } => Some(body),
            _ => None,
        };
        let end = tokio::time::Instant::now() + Duration::from_secs(3);
        while let Ok(Some(body)) = tokio::time::timeout_at(end, nosy.wait(heard)).await {
            bodies.push(body);
        }
        bodies
    });
    b.join(&created.id.to_string(), &[a.address()], Duration::ZERO)
        .await
        .unwrap();
    until("the question arrived", || async {
        a.requests("lab").await == vec![b.peer]
    })
    .await;
    let bodies = asked.await.unwrap();
    assert!(!bodies.is_empty(), "whoever is connected is asked");
    for body in bodies {
        assert!(
            !body.windows(16).any(|w| w == created.id.0),
            "the ID, which lets anybody into an open subnet, was told"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approval_admits_who_is_called_so_and_not_who_made_a_key_like_it() {
    let (a, anna) = tokio::join!(Node::start("a"), Node::start("anna"));
    let created = a.create("lab").await;
    let thief = Hostile::start(ENDS_WITH_ANNA);
    assert!(thief.peer().to_string().ends_with("anna"));
    thief.meet(&a, &[]).await;
    let question = JoinRequest::Ask(ask(ENDS_WITH_ANNA, created.id, "printer", None));
    assert_eq!(
        thief.join(&a, &question).await,
        JoinAnswer::Pending { reached: true }
    );
    anna.join(&created.id.to_string(), &[a.address()], Duration::ZERO)
        .await
        .unwrap();
    until("both ask", || async { a.requests("lab").await.len() == 2 }).await;
    let approve = |who: &str| Request::MemberApprove {
        subnet: "lab".into(),
        member: who.into(),
    };
    a.ok(approve("anna")).await;
    let peers = a.peers("lab").await;
    assert!(
        peers.contains(&anna.peer) && !peers.contains(&thief.peer()),
        "{peers:?}"
    );

    // Two that ask by one name: neither is meant by it, each is by its ID or what is printed of it.
    for seed in [[31; 32], [32; 32]] {
        let twin = Hostile::start(seed);
        twin.meet(&a, &[]).await;
        let question = JoinRequest::Ask(ask(seed, created.id, "carol", None));
        assert_eq!(
            twin.join(&a, &question).await,
            JoinAnswer::Pending { reached: true }
        );
    }
    let refused = a.call(approve("carol")).await.unwrap_err();
    assert_eq!(refused.code, "E-AMBIGUOUS");
    assert_eq!(a.peers("lab").await.len(), 2, "nobody was let in");
    let asking = a.requests("lab").await;
    let shown = byway::model::find::peer_prefixes(asking.iter().copied());
    let (who, prefix) = asking
        .iter()
        .zip(&shown)
        .find(|(p, _)| **p != thief.peer())
        .unwrap();
    assert!(refused.message.contains(prefix.as_str()), "{refused}");
    a.ok(approve(prefix)).await;
    assert!(a.peers("lab").await.contains(who));
    assert_eq!(
        a.call(approve(&who.to_string()[44..]))
            .await
            .unwrap_err()
            .code,
        "E-NO-REQUEST",
        "no endings"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subnet_is_left_by_no_text_that_means_two() {
    let a = Node::start("a").await;
    let created = a.create("lab").await;
    let prefix = created.id.to_string()[..8].to_owned();
    let leave = |text: &str| Request::Leave {
        subnet: text.into(),
    };
    // Every prefix of an ID is a name too.
    a.create(&prefix).await;
    assert_eq!(
        a.call(leave(&prefix)).await.unwrap_err().code,
        "E-AMBIGUOUS"
    );
    assert_eq!(
        a.call(leave(&created.id.to_string()[..7]))
            .await
            .unwrap_err()
            .code,
        "E-NO-SUBNET"
    );
    a.ok(leave(&created.id.to_string()[..9])).await;
    assert!(a.members("lab").await.is_empty());
}
