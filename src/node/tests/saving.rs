//! What is true while a change is being saved, and after it could not be.

use super::*;
use crate::store::StoreError;

/// A draft in which this node has added a name.
fn added(core: &Core, name: &str) -> Draft {
    let mut subnet = core.state.edit("lab").unwrap();
    subnet
        .dns_add(
            &core.state.me,
            name,
            &[RecordData::Txt("x".into())],
            60,
            core.now(),
        )
        .unwrap();
    let mut draft = Draft::default();
    draft.put(subnet);
    draft
}

#[tokio::test]
async fn what_is_being_saved_is_not_true_yet_and_nothing_is_decided_meanwhile() {
    let lab = lab(3).await;
    let (id, before) = (lab.id, lab.node.view().load().generation);
    let during = lab.node.run(move |core| {
        let held = |core: &Core| core.state.subnets[&id].records.held();
        let (old, question) = (held(core), core.compare(id));
        core.commit(added(core, "wiki")).unwrap();
        assert_ne!(held(core), old, "for the job that decides it is true");
        core.launch(Box::new(|_| ()));
        assert!(core.flight.is_some() && held(core) == old);
        assert_eq!(
            format!("{:?}", core.compare(id)),
            format!("{question:?}"),
            "nobody is told"
        );
        (
            core.commit(added(core, "other")).unwrap_err().code,
            core.view().generation,
        )
    });
    assert_eq!(during.await.unwrap(), ("E-BUSY".to_owned(), before));
    let names = |core: &mut Core| {
        core.names("lab")
            .unwrap()
            .into_iter()
            .map(|n| n.name)
            .collect::<Vec<_>>()
    };
    let after = lab.node.run(names).await.unwrap();
    assert!(
        after.contains(&"wiki.lab.internal".to_owned())
            && !after.contains(&"other.lab.internal".to_owned())
    );
    assert!(
        lab.node.view().load().generation > before,
        "the next job that decides comes after it was published"
    );
}

#[tokio::test]
async fn what_could_not_be_saved_has_changed_nothing() {
    let lab = lab(3).await;
    let (id, before) = (lab.id, lab.node.view().load().generation);
    let refused = lab.node.run(move |core| {
        let (old, generation) = (core.state.subnets[&id].clone(), core.generation());
        core.commit(added(core, "wiki")).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        core.launch(Box::new(move |saved| tell.send(saved).unwrap()));
        core.landed(Err(StoreError::Full {
            path: "state".into(),
        }));
        assert!(core.state.subnets[&id] == old && core.untold.is_empty() && core.decided.is_none());
        assert_eq!(
            core.generation(),
            generation,
            "who changes nothing waits for no View that never comes"
        );
        told.try_recv().unwrap().unwrap_err().code
    });
    assert_eq!(refused.await.unwrap(), "E-DISK-FULL");
    assert_eq!(lab.node.view().load().generation, before);
}

/// A job that drafts a change and takes it back in the same breath.
#[tokio::test]
async fn what_came_and_went_in_one_job_is_neither_saved_nor_known_nor_told() {
    let mut lab = lab(3).await;
    while lab.pushes.try_recv().is_ok() {}
    let id = lab.id;
    let (first, second) = (lab.node.run(move |core| {
        let mut records = Vec::new();
        for name in ["wiki", "other"] {
            core.commit(added(core, name)).unwrap();
            let own = core.state.subnets[&id]
                .records
                .verified()
                .find(|r| matches!(r, Verified::Announcement(_)));
            records.push(own.unwrap().digest());
        }
        (records[0], records[1])
    }))
    .await
    .unwrap();
    let known = lab
        .node
        .run(move |core| [first, second].map(|digest| core.known.holds(id, &digest)))
        .await
        .unwrap();
    assert_eq!(known, [false, true]);
    let push = tokio::time::timeout(Duration::from_secs(5), lab.pushes.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        push.records
            .iter()
            .map(Verified::digest)
            .collect::<Vec<_>>(),
        [second]
    );
}

#[test]
fn while_something_is_saved_reading_jobs_have_their_turns() {
    let queue = Queue::new();
    let job = || -> queue::Job { Box::new(|_| Box::new(|_| ())) };
    for _ in 0..3 {
        assert!(queue.push(Lane::Own, job(), true) && queue.push(from(2), job(), false));
    }
    for _ in 0..3 {
        assert!(
            matches!(queue.next(Some(Instant::now()), true), Next::Job(_)),
            "though something is due"
        );
    }
    queue.saved(Ok(()));
    assert!(matches!(queue.next(None, true), Next::Saved(Ok(()))));
    for _ in 0..3 {
        assert!(matches!(queue.next(None, false), Next::Job(_)));
    }
    assert!(matches!(queue.next(Some(Instant::now()), false), Next::Due));
}
