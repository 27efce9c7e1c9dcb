//! What engines and their containers asked for and did not get: kept while it is so, for `status`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::api::types::Problem;
use crate::model::error::Code;
use crate::model::id::SubnetId;
use crate::model::workload::Workload;
use crate::node::Core;

/// Problems of one container that are told at most.
const MOST: usize = 8;

/// Who asked for what it did not get.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    /// The container of an endpoint, by the engine's ID of the endpoint.
    Endpoint(String),
    /// What is kept of Docker: it cannot be read.
    DockerFile,
}

/// The container of an endpoint, as its engine told of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Container {
    /// Name that the engine has for it.
    pub name: String,
    /// The engine's ID of it.
    pub id: String,
}

/// An engine that does not answer, and how many workloads here depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Silent {
    /// Socket at which it was asked.
    pub engine: PathBuf,
    /// How many workloads depend on it.
    pub workloads: usize,
}

/// What is known of engines since this process began.
#[derive(Debug, Default)]
pub(in crate::node) struct Engines {
    /// Sockets of those that do not answer.
    pub silent: BTreeSet<PathBuf>,
    /// What they and their containers asked for and did not get.
    told: BTreeMap<Asker, Vec<Problem>>,
    /// The containers of endpoints, by the endpoints' IDs.
    containers: BTreeMap<String, Container>,
    /// Socket of the one that has this daemon as its plugin.
    pub plugin: Option<PathBuf>,
}

impl Core {
    /// What is not as somebody asked for it; in place of what was told of the same asker before. An empty list: all is well.
    pub fn tell(&mut self, asker: Asker, mut problems: Vec<Problem>) {
        problems.truncate(MOST);
        if problems.is_empty() {
            self.engines.told.remove(&asker);
        } else {
            self.engines.told.insert(asker, problems);
        }
        // Endpoints that are gone ask for nothing.
        let here: Vec<String> = self.endpoints().map(|(_, id)| id.to_owned()).collect();
        let lives = |id: &String| here.contains(id);
        self.engines
            .told
            .retain(|asker, _| !matches!(asker, Asker::Endpoint(id) if !lives(id)));
        self.engines.containers.retain(|id, _| lives(id));
    }

    /// Which container an endpoint is of.
    pub fn container_is(&mut self, endpoint: String, container: Container) {
        self.engines.containers.insert(endpoint, container);
    }

    /// The container of a workload that its engine knows as an endpoint, where the engine has told of it.
    pub(in crate::node) fn container_of(&self, workload: &Workload) -> Option<&Container> {
        let endpoint = workload.target.container()?;
        let known = self.engines.containers.get(endpoint);
        known.filter(|_| workload.target.moves_links())
    }

    /// Every endpoint of Docker's networks, with its subnet.
    fn endpoints(&self) -> impl Iterator<Item = (SubnetId, &str)> {
        self.state.subnets.values().flat_map(|s| {
            let ours = s.local.workloads.iter().filter(|w| w.target.moves_links());
            ours.filter_map(|w| Some((s.records.id, w.target.container()?)))
        })
    }

    /// What engines and containers are to be told of; of one subnet, or of all.
    pub(in crate::node) fn told_now(&self, only: Option<SubnetId>) -> Vec<Problem> {
        let here: BTreeMap<&str, SubnetId> = self.endpoints().map(|(s, id)| (id, s)).collect();
        let concerns = |asker: &Asker| match asker {
            Asker::Endpoint(id) => here
                .get(id.as_str())
                .is_some_and(|subnet| only.is_none_or(|only| only == *subnet)),
            Asker::DockerFile => only.is_none(),
        };
        let all = self
            .engines
            .told
            .iter()
            .filter(|(asker, _)| concerns(asker));
        all.flat_map(|(_, problems)| problems.iter().cloned())
            .collect()
    }

    /// The engines that do not answer while workloads here depend on them.
    pub(in crate::node) fn silent_now(&self) -> Vec<Silent> {
        let followed_at = |engine: &PathBuf| {
            let all = self.state.subnets.values();
            all.flat_map(|s| s.local.followed.values())
                .filter(|f| f.engine.as_ref() == Some(engine))
                .count()
        };
        let of = |engine: &PathBuf| {
            let endpoints = match self.engines.plugin.as_ref() == Some(engine) {
                true => self.endpoints().count(),
                false => 0,
            };
            let workloads = followed_at(engine).saturating_add(endpoints);
            (workloads > 0).then(|| Silent {
                engine: engine.clone(),
                workloads,
            })
        };
        self.engines.silent.iter().filter_map(of).collect()
    }

    /// Which engine has this daemon as its plugin, and whether it answers; none where there is no such engine.
    pub fn plugin_engine(&mut self, engine: Option<(PathBuf, bool)>) {
        let Some((engine, answers)) = engine else {
            self.engines.plugin = None;
            return;
        };
        self.engine_answers(&engine, answers);
        self.engines.plugin = Some(engine);
    }
}

/// A warning of one container.
pub fn warning(code: Code, message: String, help: String) -> Problem {
    Problem {
        code: code.into(),
        severity: "warning".into(),
        message,
        help,
    }
}
