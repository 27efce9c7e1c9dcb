//! A node that is in no subnet.

use super::*;

#[tokio::test]
async fn where_there_is_no_subnet_none_is_taken_up_or_down() {
    let lab = start(State::new(identity(1)));
    for up in [true, false] {
        let error = lab.node.set_up(None, up).await.unwrap_err();
        let told = (error.kind, error.code.as_str(), error.hint.as_str());
        assert_eq!(
            told,
            (ErrorKind::NotFound, "E-NO-SUBNET", "byway create NAME")
        );
    }
}
