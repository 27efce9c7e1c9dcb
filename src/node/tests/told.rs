//! What engines and containers asked for and did not get: told while it is so.

use std::collections::BTreeSet;

use super::*;
use crate::model::error::Code;

async fn told(lab: &Lab) -> Vec<String> {
    let overview = lab.node.overview(None).await.unwrap();
    let silent = overview
        .silent
        .iter()
        .map(|s| format!("silent {}", s.workloads));
    let told = overview.told.iter().map(|p| p.message.clone());
    silent.chain(told).collect()
}

#[tokio::test]
async fn what_is_wrong_with_a_container_is_told_until_it_is_mended_or_gone() {
    let lab = lab(1).await;
    let free = lab.node.free_address(lab.id, false, None, BTreeSet::new());
    let new = NewEndpoint {
        id: "e1".repeat(32),
        addresses: vec![free.await.unwrap()],
        mac: None,
    };
    let id = new.id.clone();
    let (_, added) = lab.node.stage(lab.id, new).await.unwrap().answer;
    lab.node.confirm(added).await.unwrap();
    let asker = || Asker::Endpoint(id.clone());
    let problem = |text: &str| warning(Code::Label, text.to_owned(), "mend it".to_owned());
    let tell = async |asker, problems| lab.node.tell(asker, problems).await.unwrap();
    tell(asker(), vec![problem("a label is wrong")]).await;
    tell(Asker::DockerFile, vec![problem("a file is damaged")]).await;
    tell(Asker::Endpoint("gone".to_owned()), vec![problem("nobody")]).await;
    assert_eq!(told(&lab).await, ["a label is wrong", "a file is damaged"]);
    tell(asker(), vec![]).await;
    assert_eq!(told(&lab).await, ["a file is damaged"]);
    tell(Asker::DockerFile, vec![]).await;
    // An engine that is silent is told of only where workloads depend on it.
    let engine = std::path::PathBuf::from("/run/docker.sock");
    let answers = async |yes| {
        let engine = Some((engine.clone(), yes));
        lab.node.plugin_engine(engine).await.unwrap();
    };
    answers(false).await;
    assert_eq!(told(&lab).await, ["silent 1"]);
    answers(true).await;
    assert_eq!(told(&lab).await, [""; 0]);
    // Its container is shown as the engine calls it.
    let shown = async || {
        let all = lab.node.workloads().await.unwrap();
        (all[0].target.clone(), all[0].container.clone())
    };
    assert_eq!(shown().await, (id.clone(), Some(id.clone())));
    let container = Container {
        name: "web".to_owned(),
        id: "c1".repeat(32),
    };
    lab.node
        .container_is(id.clone(), container.clone())
        .await
        .unwrap();
    assert_eq!(shown().await, (container.name, Some(container.id)));
    tell(asker(), vec![problem("a label is wrong")]).await;
    answers(false).await;
    lab.node.remove_endpoint(id.clone()).await.unwrap();
    assert_eq!(told(&lab).await, [""; 0], "it goes with its container");
}
