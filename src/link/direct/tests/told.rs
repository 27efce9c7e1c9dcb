//! What members tell of their addresses, again and again.

use super::*;

/// The list of a member that is at one address.
fn at_port(port: u16) -> Paths {
    let candidate = Candidate {
        address: SocketAddr::from(([198, 51, 100, 7], port)),
        kind: Kind::Host,
    };
    Paths {
        candidates: vec![candidate],
        ..Paths::default()
    }
}

#[tokio::test]
async fn a_member_that_alternates_is_charged_and_its_last_word_is_taken_later() {
    let streams = Streams::default();
    let a = streams.start(1, view(1, 1, &[1, 2]), true).await;
    let mut last = 0;
    let mut answered = 0;
    for n in 0..200 {
        let port = 5000 + n;
        if a.handle.paths(peer(2), at_port(port)).await.is_ok() {
            (answered, last) = (answered + 1, port);
        }
    }
    assert!(
        (16..=20).contains(&answered),
        "{answered} of 200 were taken"
    );
    let key = Key {
        subnet: subnet(0),
        peer: peer(2),
    };
    let told = async || -> Vec<u16> {
        let status = a.handle.status().await.remove(&key);
        let tried = status.map(|status| status.tried);
        let tried = tried.iter().flat_map(|tried| tried.iter());
        tried.map(|tried| tried.address.port()).collect()
    };
    // It changed too often to be followed to the last.
    let now = told().await;
    assert!(now.len() == 1 && now != [last], "{now:?} of {last}");
    eventually("its last word is taken", SOON, async || {
        told().await == [last]
    })
    .await;
    a.end().await;
}
