//! Handlers as they run: deadlines, a request that comes again, the end.

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::p2p::{Config, TransportKind};

const ME: PeerId = PeerId([1; 32]);
const LAB: SubnetId = SubnetId([7; 16]);

/// A service whose kind 1 is answered by `handler`, and that has nobody to ask.
fn service(handler: Handler) -> Service {
    let mut router = Router::default();
    router
        .add(
            1,
            Method {
                name: "test",
                cost: 1,
                most: 100,
                handler,
            },
        )
        .unwrap();
    let mut config = Config::new([9; 32]);
    config.transport = TransportKind::Memory;
    let (peers, _, _) = crate::p2p::start(config).unwrap();
    let mut view = View::default();
    view.rolls.insert(LAB, Arc::new([ME].into()));
    Service::new(router, Arc::new(ArcSwap::from_pointee(view)), peers, 0)
}

fn request(id: u64, subnet: Option<SubnetId>, deadline_ms: u32) -> Vec<u8> {
    ServiceRequest {
        kind: 1,
        id,
        subnet,
        deadline_ms,
        body: vec![5],
    }
    .encode()
}

/// Hands a request in. The answer comes, or the other end is dropped.
fn ask(service: &Service, bytes: Vec<u8>) -> oneshot::Receiver<Vec<u8>> {
    let (respond, answer) = oneshot::channel();
    let respond: Respond = Box::new(move |bytes| drop(respond.send(bytes)));
    service.arrived(ME, bytes, respond).unwrap();
    answer
}

async fn answer(asked: oneshot::Receiver<Vec<u8>>) -> Result<Vec<u8>, Refusal> {
    ServiceAnswer::parse(asked.await.unwrap()).unwrap().result
}

#[tokio::test]
async fn what_is_not_done_at_its_deadline_is_answered_with_that() {
    let service = service(Box::new(|_| std::future::pending().boxed()));
    assert_eq!(
        answer(ask(&service, request(1, None, 1))).await,
        Err(ServiceCode::Timeout.into())
    );
    assert_eq!(
        (
            service.counts().running,
            service.counts().refused.get(&1005)
        ),
        (0, Some(&1))
    );
}

#[tokio::test]
async fn a_handler_is_told_who_asks_and_about_what_and_only_of_common_subnets() {
    let service = service(Box::new(|call| {
        let said = (call.peer == ME && call.subnet == Some(LAB))
            .then_some(call.body)
            .ok_or(ServiceCode::Failed.into());
        std::future::ready(said).boxed()
    }));
    assert_eq!(
        answer(ask(&service, request(1, Some(LAB), 1000))).await,
        Ok(vec![5])
    );
    let elsewhere = ask(&service, request(2, Some(SubnetId([8; 16])), 1000));
    assert_eq!(
        answer(elsewhere).await,
        Err(ServiceCode::NotPermitted.into())
    );
    assert_eq!(service.counts().requests.get("test"), Some(&2));
}

#[tokio::test]
async fn a_request_that_comes_again_while_it_runs_is_run_once_and_answered_twice() {
    let (began, mut runs) = mpsc::unbounded_channel();
    let service = service(Box::new(move |_| {
        let (done, wait) = oneshot::channel::<()>();
        began.send(done).unwrap();
        async move {
            wait.await
                .map(|()| vec![6])
                .map_err(|_| ServiceCode::Failed.into())
        }
        .boxed()
    }));
    let first = ask(&service, request(1, None, 9000));
    let again = ask(&service, request(1, None, 9000));
    runs.recv().await.unwrap().send(()).unwrap();
    assert_eq!(
        (answer(first).await, answer(again).await),
        (Ok(vec![6]), Ok(vec![6]))
    );
    let later = ask(&service, request(1, None, 9000));
    assert_eq!(answer(later).await, Ok(vec![6]), "as it was kept");
    assert!(runs.try_recv().is_err(), "it ran once");
}

#[tokio::test]
async fn at_the_end_every_handler_has_ended_and_nobody_waits() {
    let service = service(Box::new(|_| std::future::pending().boxed()));
    let all: Vec<_> = (0..10)
        .map(|id| ask(&service, request(id, None, u32::MAX)))
        .collect();
    assert_eq!(service.counts().running, 10);
    service.stop().await;
    assert_eq!(service.counts().running, 0);
    for asked in all {
        assert!(asked.await.is_err(), "there will be no answer");
    }
}
