//! Commands that are given a second time.

use super::*;
use crate::api::types::Response;
use crate::model::host::HostPolicy;

pub(super) fn founding(name: &str) -> Founding {
    Founding {
        salt: [0; 16],
        ..crate::testing::founding(name.parse().unwrap(), "a".parse().unwrap())
    }
}

/// Whether a command says that it changed something.
fn changed(answer: Result<Response, Error>) -> bool {
    match answer {
        Ok(Response::Done(done)) => done.changed,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_subnet_that_is_created_again_with_the_same_values_is_there_already() {
    let lab = lab(1).await;
    let create = async |founding: Founding| match lab.node.create(founding).await {
        Ok(Effect {
            answer: created, ..
        }) => Ok((created.id, created.invite.is_some())),
        Err(error) => Err(error.code),
    };
    let (id, invited) = create(founding("one")).await.unwrap();
    assert!(invited);
    assert_eq!(create(founding("one")).await, Ok((id, false)));
    let given = Founding {
        domain: Some("one.internal".into()),
        grant_life: Some(90 * 86_400),
        ..founding("one")
    };
    assert_eq!(
        create(given).await,
        Ok((id, false)),
        "the defaults, spelled out"
    );
    let other: [fn(&mut Founding); 7] = [
        |f| f.cidr4 = None,
        |f| f.cidr4 = Some(Some("10.200.0.0/16".parse().unwrap())),
        |f| f.cidr6 = None,
        |f| f.block4 = Some(26),
        |f| f.admission = Admission::Open,
        |f| f.domain = Some("two.internal".into()),
        |f| f.grant_life = Some(3600),
    ];
    for change in other {
        let mut founding = founding("one");
        change(&mut founding);
        let shown = format!("{founding:?}");
        assert_eq!(
            create(founding).await,
            Err("E-SUBNET-EXISTS".into()),
            "{shown}"
        );
    }
    // What was opened since is compared only where it is asked for.
    let opened: HostPolicy = "tcp/22".parse().unwrap();
    lab.node
        .run(move |core| core.set_host_policy("one", opened))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(create(founding("one")).await, Ok((id, false)));
    let asked = |host: &str| Founding {
        host: Some(host.parse().unwrap()),
        ..founding("one")
    };
    assert_eq!(create(asked("tcp/22")).await, Ok((id, false)));
    assert_eq!(create(asked("closed")).await, Err("E-SUBNET-EXISTS".into()));
}

#[tokio::test]
async fn a_member_is_removed_twice_while_its_revocation_is_kept() {
    let lab = lab(3).await;
    let answers = lab.node.run(|core| {
        let peer = identity(2).peer.to_string();
        let first = changed(core.member_remove("lab", "m2"));
        let again = [
            changed(core.member_remove("lab", "m2")),
            changed(core.member_remove("lab", &peer)),
        ];
        let never = core.member_remove("lab", "m9").unwrap_err().code;
        // An epoch ends every revocation: from then on nothing tells that there was such a member.
        let mut subnet = core.state.edit("lab").unwrap();
        subnet
            .begin_epoch(&core.state.me.clone(), core.now())
            .unwrap();
        let mut draft = Draft::default();
        draft.put(subnet);
        core.commit(draft).unwrap();
        (
            first,
            again,
            never,
            core.member_remove("lab", "m2").unwrap_err().code,
        )
    });
    let none = String::from("E-NO-MEMBER");
    assert_eq!(
        answers.await.unwrap(),
        (true, [false, false], none.clone(), none)
    );
}

#[tokio::test]
async fn who_may_not_remove_may_not_ask_twice_either() {
    let mut draft = Draft::default();
    let owner = State::new(identity(1));
    let mut subnet = subnet(&owner, 3);
    subnet
        .remove(&owner.me, identity(3).peer, unix_now())
        .unwrap();
    draft.put(subnet);
    let mut state = State::new(identity(2));
    let _ = state.absorb(draft);
    let lab = start(state);
    let refused = lab
        .node
        .run(|core| core.member_remove("lab", "m3").unwrap_err().code)
        .await
        .unwrap();
    assert_eq!(refused, "E-NOT-ADMIN");
}

#[tokio::test]
async fn a_lease_that_nobody_holds_is_given_back_already() {
    let lab = lab(2).await;
    let answers = lab.node.run(|core| {
        let pool = core.state.find("lab").unwrap().records.pools().v4.unwrap();
        let net = u32::from(pool.network()) | 200 << 8;
        let prefix = ipnet::IpNet::new(std::net::Ipv4Addr::from(net).into(), 24).unwrap();
        core.lease_add("lab", &[(prefix, identity(2).peer)])
            .unwrap();
        // Who named a part of a lease, or more than it, would think that it is given back.
        let near = [25, 23].map(|len| ipnet::IpNet::new(prefix.addr(), len).unwrap().trunc());
        let near = near.map(|near| core.lease_rm("lab", near, None).unwrap_err());
        assert!(
            near.iter().all(
                |e| e.code == "E-NO-LEASE" && e.message.contains(&format!("m2 holds {prefix}"))
            ),
            "{near:?}"
        );
        let given = [
            changed(core.lease_rm("lab", prefix, None)),
            changed(core.lease_rm("lab", prefix, None)),
        ];
        let named = changed(core.lease_rm("lab", prefix, Some("m2")));
        (
            given,
            named,
            core.lease_rm("lab", "192.0.2.0/24".parse().unwrap(), None)
                .unwrap_err()
                .code,
        )
    });
    assert_eq!(
        answers.await.unwrap(),
        ([true, false], false, "E-NO-LEASE".to_owned())
    );
}

#[tokio::test]
async fn a_name_that_is_said_again_changes_nothing() {
    let lab = lab(1).await;
    let answers = lab.node.run(|core| {
        let text = [RecordData::Txt("x".into())];
        let mut add = |ttl| changed(core.dns_add("lab", "n", &text, ttl));
        [add(60), add(60), add(90), add(90)]
    });
    assert_eq!(answers.await.unwrap(), [true, false, true, false]);
}
