//! Users beside the groups: those who may attach containers of their own, and change nothing else.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::unistd::User;
use parking_lot::Mutex;

use super::acl;
use crate::config::users::WorkloadUser;

/// What a user needs to pass a directory, and to connect to a socket.
const PASS: u16 = 1;
const CONNECT: u16 = 6;

/// The users that are listed now. Clones are one.
#[derive(Debug, Clone, Default)]
pub struct Users(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Workloads that each may have at a time, by the number of the user.
    quotas: BTreeMap<u32, u32>,
    /// The socket that they are let in to.
    socket: Option<PathBuf>,
}

impl Users {
    /// Workloads that a user may have at a time; none of one who is not listed.
    pub fn quota(&self, user: u32) -> Option<u32> {
        self.0.lock().quotas.get(&user).copied()
    }

    /// Replaces the list, and lets the users of it in. May wait for the user database.
    ///
    /// What cannot be done is logged: a name that this machine does not know, or a file system without access control lists.
    pub fn set(&self, listed: &[WorkloadUser]) {
        let known = |user: &WorkloadUser| {
            let number = number(&user.name);
            if number.is_none() {
                let user = &user.name;
                tracing::warn!(user, "workloads.users names nobody of this machine");
            }
            number.map(|number| (number, user.quota))
        };
        let quotas: BTreeMap<u32, u32> = listed.iter().filter_map(known).collect();
        let mut inner = self.0.lock();
        let before = std::mem::replace(&mut inner.quotas, quotas);
        let out = before
            .keys()
            .filter(|user| !inner.quotas.contains_key(user));
        let out: Vec<u32> = out.copied().collect();
        if let Some(socket) = &inner.socket {
            admit(socket, &inner.quotas, &out);
        }
    }

    /// Lets the users in to a socket that was made, now and whenever they change.
    pub(super) fn open(&self, socket: &Path) {
        let mut inner = self.0.lock();
        admit(socket, &inner.quotas, &[]);
        inner.socket = Some(socket.to_owned());
    }
}

/// The number of a user, by name or as digits.
fn number(name: &str) -> Option<u32> {
    let digits = name.parse().ok();
    digits.or_else(|| Some(User::from_name(name).ok()??.uid.as_raw()))
}

fn admit(socket: &Path, quotas: &BTreeMap<u32, u32>, out: &[u32]) {
    let users: Vec<u32> = quotas.keys().copied().collect();
    if users.is_empty() && out.is_empty() {
        return;
    }
    let change = || -> io::Result<()> {
        if let Some(directory) = socket.parent()
            && std::fs::metadata(directory)?.permissions().mode() & 1 == 0
        {
            acl::change(directory, PASS, &users, out)?;
        }
        acl::change(socket, CONNECT, &users, out)
    };
    if let Err(error) = change() {
        let socket = socket.display();
        tracing::warn!(%socket, %error, "users of workloads.users are not let in: put them into group byway");
    }
}
