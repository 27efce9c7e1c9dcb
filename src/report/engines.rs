//! What `status` says of container engines that are not well.

use crate::api::types::Problem;
use crate::model::error::Code;
use crate::node::Silent;

/// An engine that does not answer while workloads depend on it.
pub(super) fn silent(found: &Silent) -> Problem {
    let engine = found.engine.display();
    let many = match found.workloads {
        1 => "1 workload".to_owned(),
        n => format!("{n} workloads"),
    };
    Problem {
        code: Code::Docker.into(),
        severity: "warning".into(),
        message: format!(
            "the container engine at {engine} does not answer: what becomes of {many} of its containers is not seen"
        ),
        help: format!(
            "curl --unix-socket {engine} http://localhost/_ping; systemctl status docker"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_engine_is_named_with_how_many_workloads_depend_on_it() {
        let of = |workloads| {
            let found = Silent {
                engine: "/run/docker.sock".into(),
                workloads,
            };
            silent(&found)
        };
        let told = of(2);
        assert_eq!(
            (told.code.as_str(), told.severity.as_str()),
            ("E-DOCKER", "warning")
        );
        assert!(told.message.contains("/run/docker.sock") && told.message.contains("2 workloads"));
        assert!(of(1).message.contains("1 workload ") && !told.help.is_empty());
    }
}
