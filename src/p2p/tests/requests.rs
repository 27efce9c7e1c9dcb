//! Requests and their answers, and what identify says.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_says_of_its_program_is_known_while_it_is_connected() {
    let mut talker = in_memory(113);
    talker.agent = "byway/9.9 v=2-7 f=80".to_owned();
    let (a, b, _streams) = pair(in_memory(114), talker).await;
    let said = loop {
        if let Some(agent) = a.handle.status_of(b.peer()).await.unwrap().agent {
            break agent;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(
        (
            said.program.as_str(),
            said.versions.least,
            said.versions.most
        ),
        ("byway/9.9", 2, 7)
    );
    a.handle
        .send(Command::Disconnect { peer: b.peer() })
        .await
        .unwrap();
    assert_eq!(a.handle.status_of(b.peer()).await.unwrap().agent, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_requests_pass_and_larger_ones_are_refused() {
    let (a, mut b, _streams) = pair(in_memory(13), in_memory(14)).await;
    for protocol in [Protocol::Join, Protocol::Control, Protocol::Service] {
        let cap = protocol.cap();
        let (handle, peer) = (a.handle.clone(), b.peer());
        let whole =
            tokio::spawn(async move { handle.ask(peer, protocol, vec![5; cap], PATIENCE).await });
        assert_eq!(b.answer().await, (protocol, Class::Member));
        assert_eq!(whole.await.unwrap().unwrap().len(), cap);
        let over = a
            .handle
            .ask(b.peer(), protocol, vec![5; cap + 1], PATIENCE)
            .await;
        assert_eq!(over, Err(AskError::TooLarge(cap + 1)));
        // Answers have room for all that decides whether a joiner is a member.
        let (handle, peer) = (a.handle.clone(), b.peer());
        let large =
            tokio::spawn(async move { handle.ask(peer, protocol, vec![1], PATIENCE).await });
        let asked = |event| {
            if let Event::Asked { responder, .. } = event {
                Ok(responder)
            } else {
                Err(event)
            }
        };
        b.expect(asked).await.respond(vec![6; 1024 * 1024]);
        assert_eq!(
            large.await.unwrap().map(|answer| answer.len()),
            Ok(1024 * 1024)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_dials_and_an_unanswered_one_ends() {
    let (a, mut b) = (
        Node::start(in_memory(15)).await,
        Node::start(in_memory(16)).await,
    );
    assert_eq!(
        a.handle
            .ask(b.peer(), Protocol::Join, vec![1], PATIENCE)
            .await,
        Err(AskError::NoAddress)
    );
    let heard = vec![Heard::parse(&b.address.to_string()).unwrap()];
    a.handle
        .send(Command::Known {
            peer: b.peer(),
            heard,
            answered: vec![],
        })
        .await
        .unwrap();
    let (handle, peer) = (a.handle.clone(), b.peer());
    let ask =
        tokio::spawn(async move { handle.ask(peer, Protocol::Join, vec![1, 2], PATIENCE).await });
    b.answer().await;
    assert_eq!(ask.await.unwrap(), Ok(vec![2, 1]));
    let (handle, peer) = (a.handle.clone(), b.peer());
    let ask =
        tokio::spawn(async move { handle.ask(peer, Protocol::Join, vec![1], PATIENCE).await });
    let asked = |event| {
        if let Event::Asked { responder, .. } = event {
            Ok(responder)
        } else {
            Err(event)
        }
    };
    drop(b.expect(asked).await);
    assert_eq!(ask.await.unwrap(), Err(AskError::Closed));
}
