//! What a stranger, a new member and a removed one get.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_gets_the_join_protocol_and_nothing_else() {
    let (mut a, mut b) = (
        Node::start(in_memory(1)).await,
        Node::start(in_memory(2)).await,
    );
    // `a` believes that both are members and tries everything; `b` knows nothing of it.
    a.members(&[(b.peer(), &[LAB])]).await;
    a.handle
        .connect(vec![Typed::new(b.address.clone())], None)
        .await
        .unwrap();
    let control = a
        .handle
        .ask(b.peer(), Protocol::Control, b"let me in".to_vec(), PATIENCE)
        .await;
    assert_eq!(control, Err(AskError::Refused));
    let (handle, peer) = (a.handle.clone(), b.peer());
    let join = tokio::spawn(async move {
        handle
            .ask(peer, Protocol::Join, b"abc".to_vec(), PATIENCE)
            .await
    });
    assert_eq!(b.answer().await, (Protocol::Join, Class::Stranger));
    assert_eq!(join.await.unwrap(), Ok(b"cba".to_vec()));
    let stream = |event| match event {
        Event::StreamOut { .. } | Event::StreamIn { .. } | Event::Rtt { .. } => Ok(()),
        other => Err(other),
    };
    assert_eq!(a.within(Duration::from_secs(1), stream).await, None);
    assert_eq!(b.within(Duration::from_millis(10), stream).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admitted_stranger_gets_everything_within_a_second() {
    let mut config = (in_memory(3), in_memory(4));
    (config.0.timing, config.1.timing) = (Timing::default(), Timing::default());
    let (mut a, mut b) = (Node::start(config.0).await, Node::start(config.1).await);
    // Only `a`, which joins, knows an address; only then do they learn of each other.
    a.handle
        .connect(vec![Typed::new(b.address.clone())], None)
        .await
        .unwrap();
    let (handle, peer) = (a.handle.clone(), b.peer());
    let join = tokio::spawn(async move {
        handle
            .ask(peer, Protocol::Join, b"abc".to_vec(), PATIENCE)
            .await
    });
    // The issuer admits before it answers: the answer arrives all the same.
    b.members(&[(a.peer(), &[LAB])]).await;
    b.answer().await;
    assert_eq!(join.await.unwrap(), Ok(b"cba".to_vec()));
    let start = Instant::now();
    a.members(&[(b.peer(), &[LAB])]).await;
    let (mut out, mut into) = (a.stream_out().await.2, b.stream_in().await.2);
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    carries(&mut out, &mut into).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_sent_before_the_peer_heard_of_the_grant_is_answered() {
    let (a, mut b) = (
        Node::start(in_memory(61)).await,
        Node::start(in_memory(62)).await,
    );
    a.members(&[(b.peer(), &[LAB])]).await;
    a.handle
        .connect(vec![Typed::new(b.address.clone())], None)
        .await
        .unwrap();
    let (handle, peer) = (a.handle.clone(), b.peer());
    let ask = tokio::spawn(async move {
        handle
            .ask(peer, Protocol::Control, b"abc".to_vec(), PATIENCE)
            .await
    });
    // The request has been refused at least once by then: to b its sender is a stranger.
    tokio::time::sleep(Duration::from_millis(100)).await;
    b.members(&[(a.peer(), &[LAB])]).await;
    assert_eq!(b.answer().await, (Protocol::Control, Class::Member));
    assert_eq!(ask.await.unwrap(), Ok(b"cba".to_vec()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_is_cut_at_once() {
    let (mut a, mut b, [_out, mut into, mut back, _]) = pair(in_memory(5), in_memory(6)).await;
    b.members(&[]).await;
    b.closed().await;
    // The removing side hears nothing more and says nothing more, whatever the transport still does.
    assert!(into.read(&mut [0; 10]).await.is_err());
    assert!(back.write(&[0; 10]).await.is_err());
    timeout(Duration::from_secs(1), a.closed()).await.unwrap();
    // It comes back as what it is now.
    let class = b
        .expect(|event| match event {
            Event::Connected { class, .. } if class == Class::Stranger => Ok(class),
            other => Err(other),
        })
        .await;
    assert_eq!(class, Class::Stranger);
    assert_eq!(
        a.handle
            .ask(b.peer(), Protocol::Control, vec![1], PATIENCE)
            .await,
        Err(AskError::Refused)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_common_subnet_gets_its_streams_on_the_same_connection_and_loses_them_again() {
    let (mut a, mut b, [_out, mut into, ..]) = pair(in_memory(9), in_memory(10)).await;
    let connection = a.connections(b.peer()).await[0].connection;
    // The two ends learn of it at different times: the early one's stream waits for the late one.
    a.members(&[(b.peer(), &[LAB, HOME])]).await;
    b.members(&[(a.peer(), &[LAB, HOME])]).await;
    let (on, subnet, mut out) = a.stream_out().await;
    assert_eq!((on, subnet), (connection, HOME));
    let (_, subnet, mut into_home) = b.stream_in().await;
    assert_eq!(subnet, HOME);
    carries(&mut out, &mut into_home).await;
    b.members(&[(a.peer(), &[HOME])]).await;
    assert!(
        timeout(PATIENCE, into.read(&mut [0; 10]))
            .await
            .unwrap()
            .is_err(),
        "the stream of LAB has failed"
    );
    carries(&mut out, &mut into_home).await;
}
