//! How a workload is found again after it went away, and what it does while it is not here.
//!
//! A workload that is followed keeps its place when its namespace ends: its name and addresses stay its own. The others
//! hear that the name is kept and has no address, so nobody is sent where nothing lives. When it is back it is the same
//! workload in another namespace.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::host::{NetnsRef, ResolvConf};
use super::workload::Target;

/// What is known of a workload beside what version 1 recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Followed {
    /// The socket of the engine it was attached at; none for a namespace, which is found by its name.
    pub engine: Option<PathBuf>,
    /// Labels (`label=value`) that tell which container takes the place of this one; empty where only ID and name do.
    pub labels: Vec<String>,
    /// Whether its engine has frozen it. It is here all the same.
    pub paused: bool,
    /// Why it is not here; none while it is.
    pub away: Option<Away>,
}

/// A workload that is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Away {
    /// What became of it.
    pub why: Why,
    /// Since when, in seconds since 1970.
    pub since: u64,
}

/// Why a workload is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Why {
    /// It ended, or was not started yet.
    Stopped,
    /// It ended, and its engine is about to start it again.
    Restarting,
    /// Its engine has it no more. Another one of its name takes its place.
    Removed,
    /// It runs, and has no namespace that can be attached.
    NoNamespace,
}

impl Why {
    /// The word that `workload ls` shows.
    pub fn word(self) -> &'static str {
        match self {
            Why::Stopped => "stopped",
            Why::Restarting => "restarting",
            Why::Removed => "removed",
            Why::NoNamespace => "no-namespace",
        }
    }
}

/// A workload that is here, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    /// What it is called now: the engine may have given it another name, or another container its place.
    pub target: Target,
    /// The namespace it lives in.
    pub netns: NetnsRef,
    /// The file that names its resolver.
    pub resolv_conf: ResolvConf,
    /// See [`Followed::labels`].
    pub labels: Vec<String>,
    /// See [`Followed::paused`].
    pub paused: bool,
}
