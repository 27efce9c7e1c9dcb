//! Who left and joins again, and what it said before arrives late.

use super::*;
use crate::model::local::PendingJoin;
use crate::node::admission::JoinDecision;
use crate::node::check::Question;
use crate::wire::control::JoinRequest;

/// The owner's node of an open subnet with the members 2 and 3, and the node of 2.
async fn open() -> (Lab, Lab) {
    let (owner, mut subnet) = founded();
    (2..=3).for_each(|n| admit(&mut subnet, &owner.me, n, Role::Member));
    (holding(1, &subnet), holding(2, &subnet))
}

/// The owner, and its subnet while it has no other member.
fn founded() -> (State, Subnet) {
    let owner = State::new(identity(1));
    let founding = Founding {
        cidr6: None,
        admission: Admission::Open,
        ..crate::testing::founding("lab".parse().unwrap(), "a".parse().unwrap())
    };
    let subnet = owner.found(founding, FOUNDED).unwrap();
    (owner, subnet)
}

/// The node of an identity that holds that subnet.
fn holding(n: u8, subnet: &Subnet) -> Lab {
    let mut state = State::new(identity(n));
    let mut draft = Draft::default();
    draft.put(subnet.clone());
    let _ = state.absorb(draft);
    Lab {
        id: subnet.records.id,
        ..start(state)
    }
}

fn join(subnet: SubnetId) -> PendingJoin {
    PendingJoin {
        subnet,
        invite: None,
        hints: vec![],
        name: "m2".parse().unwrap(),
        name_is_default: true,
        alias: None,
        ip: None,
        host: Default::default(),
        allow: Default::default(),
        since: unix_now(),
        founded_as: None,
        refused: None,
        declared: false,
    }
}

type Answer = (Vec<u8>, Vec<Verified>);

impl Lab {
    /// Leaves and forgets the subnet; what was said.
    async fn leaves(&self) -> Signed {
        self.node.leave("lab".into()).await.unwrap();
        self.node.forget(self.id).await.unwrap();
        self.node.last_goodbye(self.id).await.unwrap().unwrap()
    }

    /// What member 2 is answered here.
    async fn answers(&self, request: JoinRequest) -> JoinAnswer {
        let question: Question = self.node.checker().question(request).await.unwrap();
        let joiner = identity(2).peer;
        let decided = self
            .node
            .decide_join(joiner, Payer::Member(joiner), question, false);
        match decided.await.unwrap() {
            JoinDecision::Answer(answer) => answer,
            passed_on => panic!("{passed_on:?}"),
        }
    }

    /// Asks `at` to be let in, as a join does.
    async fn asks(&self, at: &Lab) -> Answer {
        let begun = self.node.begin_join(join(self.id), false).await.unwrap();
        let ask = self.node.signed_ask(begun, None).await.unwrap();
        match at.answers(JoinRequest::Ask(ask)).await {
            JoinAnswer::Admitted { genesis, records } => {
                (genesis, at.node.checker().proof(records).await)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Takes what it was answered; the code of the error where it does not.
    async fn takes(&self, (genesis, records): Answer) -> Result<(), Code> {
        let accepted = self
            .node
            .accept_join(join(self.id), genesis, records, Default::default());
        accepted
            .await
            .map(drop)
            .map_err(|not| not.error.code.parse().unwrap())
    }

    async fn unheard(&self, (genesis, records): Answer) -> Option<Signed> {
        let unheard = self.node.unheard_goodbye(join(self.id), genesis, records);
        unheard.await.unwrap()
    }

    /// The generation by which member 2 is in here, and the version of its announcement.
    async fn second(&self) -> (Option<u32>, u64) {
        let (id, peer) = (self.id, identity(2).peer);
        let look = move |core: &mut Core| {
            let records = &core.state.subnets[&id].records;
            let resolved = records.resolve(core.now());
            let member = resolved.members.get(&peer).map(|m| m.grant.generation);
            (member, records.announcement(peer).map_or(0, |a| a.version))
        };
        self.node.run(look).await.unwrap()
    }

    /// All that is held here.
    async fn all(&self) -> Vec<Signed> {
        let id = self.id;
        let all = move |core: &mut Core| core.state.subnets[&id].records.all().cloned().collect();
        self.node.run(all).await.unwrap()
    }
}

fn version(goodbye: &Signed) -> u64 {
    match goodbye.verify() {
        Ok(Body::Announcement(announcement)) => announcement.version,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_grant_that_was_left_lets_nobody_in_again_and_who_answers_with_it_is_told() {
    let (owner, member) = open().await;
    let goodbye = member.leaves().await;
    let former = member.asks(&owner).await;
    assert_eq!(
        member.takes(former.clone()).await,
        Err(Code::BadAnswer),
        "the goodbye would end it at whoever hears it"
    );
    let unheard = member.unheard(former).await;
    assert_eq!(unheard.as_ref(), Some(&goodbye), "it is said once");
    let told = owner.answers(JoinRequest::Decline(goodbye.clone())).await;
    assert_eq!(told, JoinAnswer::Known);
    assert_eq!(owner.second().await.0, None, "it left");
    let anew = member.asks(&owner).await;
    assert_eq!(member.unheard(anew.clone()).await, None);
    assert_eq!(member.takes(anew).await, Ok(()));
    let (generation, said) = member.second().await;
    assert_eq!(generation, Some(2));
    assert!(said > version(&goodbye), "versions go on");
    assert_eq!(member.node.last_goodbye(member.id).await.unwrap(), None);
    // From another member, after all of this and before anything that the member has said since.
    for lab in [&owner, &member] {
        lab.receive(3, vec![goodbye.clone()]).await;
        lab.settled().await;
        assert_eq!(lab.second().await.0, Some(2), "it ends what was before it");
    }
    owner.receive(2, member.all().await).await;
    owner.settled().await;
    assert_eq!(owner.second().await, (Some(2), said));
}

#[tokio::test]
async fn a_goodbye_outlives_another_subnet_of_the_same_name() {
    let (_owner, member) = open().await;
    let goodbye = member.leaves().await;
    let founding = crate::testing::founding("lab".parse().unwrap(), "b".parse().unwrap());
    let created = member.node.create(founding).await.unwrap().answer;
    assert_ne!(created.id, member.id);
    let kept = member.node.last_goodbye(member.id).await.unwrap();
    assert_eq!(kept, Some(goodbye));
    assert_eq!(
        member.node.leave("lab".into()).await,
        Ok(Leaving::Said(created.id)),
        "the name is that of the one that is here"
    );
}

#[tokio::test]
async fn what_was_given_back_is_not_taken_later() {
    let (owner, member) = open().await;
    // It never came: it has nothing of the subnet but the answer.
    let joiner = Lab {
        id: member.id,
        ..start(State::new(identity(2)))
    };
    let answer = joiner.asks(&owner).await;
    let (genesis, records) = answer.clone();
    let declined = joiner.node.decline(join(joiner.id), genesis, records).await;
    let goodbye = declined.unwrap().unwrap();
    assert_eq!(joiner.takes(answer.clone()).await, Err(Code::BadAnswer));
    assert_eq!(joiner.unheard(answer).await, Some(goodbye.clone()));
    owner.answers(JoinRequest::Decline(goodbye)).await;
    let anew = joiner.asks(&owner).await;
    assert_eq!(joiner.takes(anew).await, Ok(()));
    assert_eq!(joiner.second().await.0, Some(2));
}

#[tokio::test]
async fn a_goodbye_that_what_was_said_later_outranks_is_said_anew() {
    let (owner, member) = open().await;
    let goodbye = member.leaves().await;
    // Said by the same identity on a machine that had the state of before.
    let later = announcement(member.id, 2, version(&goodbye) + 5);
    owner.receive(2, vec![later]).await;
    owner.settled().await;
    owner.answers(JoinRequest::Decline(goodbye.clone())).await;
    let former = member.asks(&owner).await;
    let anew = member.unheard(former).await.unwrap();
    assert_eq!(version(&anew), version(&goodbye) + 6);
    owner.answers(JoinRequest::Decline(anew)).await;
    let answer = member.asks(&owner).await;
    assert_eq!(member.takes(answer).await, Ok(()));
}

#[tokio::test]
async fn of_two_announcements_of_one_version_all_hold_the_same_whichever_came_first() {
    let (owner, member) = open().await;
    let body = |left: Option<u32>| Announcement {
        version: 7,
        issued: 1,
        left,
        ..Announcement::default()
    };
    let signed = |left| {
        let body = Body::Announcement(body(left));
        Signed::new(owner.id, &body, &identity(3).key)
    };
    let (stays, leaves) = (signed(None), signed(Some(1)));
    let greater = std::cmp::max_by_key(&stays, &leaves, |record| record.digest());
    for (lab, first, second) in [(&owner, &stays, &leaves), (&member, &leaves, &stays)] {
        for record in [first, second] {
            lab.receive(3, vec![record.clone()]).await;
            lab.settled().await;
        }
        assert!(lab.all().await.contains(greater));
    }
    assert_eq!(owner.all().await.len(), member.all().await.len());
}

#[tokio::test]
async fn who_does_not_remember_the_member_that_left_gives_it_a_later_generation_too() {
    let (_, member) = open().await;
    let goodbye = member.leaves().await;
    // Restored from a backup of before, or its records of the member are forgotten.
    let forgetful = holding(1, &founded().1);
    let told = forgetful.answers(JoinRequest::Decline(goodbye)).await;
    assert_eq!(told, JoinAnswer::Known, "the goodbye waits for a grant");
    let answer = member.asks(&forgetful).await;
    assert_eq!(member.takes(answer).await, Ok(()));
    assert_eq!(forgetful.second().await.0, Some(2));
    assert_eq!(member.second().await.0, Some(2));
}
