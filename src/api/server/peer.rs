//! Who asks: the kernel's word for it (SO_PEERCRED, unix(7), and SO_PEERGROUPS), and what the groups allow.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use nix::unistd::{Gid, Uid, User, getgrouplist};

use crate::api::groups::{ADMINS, READERS, number, remedy};
use crate::api::types::{Error, ErrorKind, Request};
use crate::model::error::Code;

/// What one may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// The peer may use no verb.
    None,
    /// The peer may use the verbs that only look.
    Read,
    /// The peer may use every verb.
    Change,
}

/// The process at the other end of a connection, as it was when it connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The user that the process ran as.
    pub uid: u32,
    /// The primary group of that user's process.
    pub gid: u32,
    /// The process ID, where the kernel tells.
    pub pid: Option<i32>,
    /// What the user's groups allow it to do.
    pub access: Access,
    /// Workloads of its own that a listed user may have at a time; none of a user who is not listed.
    pub quota: Option<u32>,
}

impl Peer {
    /// Looks up what the groups allow: those of the process, `held` beside its primary one, and those of its user.
    pub(super) async fn new(uid: u32, gid: u32, pid: Option<i32>, held: Vec<u32>) -> Peer {
        let access = if is_root(uid) {
            Access::Change
        } else {
            // The user database may be on the network.
            tokio::task::spawn_blocking(move || {
                let groups = [held, groups_of(uid, gid)].concat();
                granted(&groups, &number)
            })
            .await
            .unwrap_or(Access::None)
        };
        Peer {
            uid,
            gid,
            pid,
            access,
            quota: None,
        }
    }

    /// Whether this one may do everything, whatever it is about.
    pub fn is_root(&self) -> bool {
        is_root(self.uid)
    }

    /// # Errors
    /// `E-PERMISSION` where this one may not ask that.
    pub(super) async fn may(&self, request: &Request) -> Result<(), Error> {
        let (needed, groups) = if request.changes() {
            (Access::Change, ADMINS)
        } else {
            (Access::Read, READERS)
        };
        if self.access >= needed || (self.quota.is_some() && request.is_for_users()) {
            return Ok(());
        }
        let what = if needed == Access::Change {
            "change anything"
        } else {
            "look"
        };
        let message = format!(
            "user {} may not {what} here: that takes root or group {groups}",
            self.uid
        );
        let error = Error::new(ErrorKind::NotPermitted, Code::Permission, message);
        // The group database may be on the network.
        let hint = tokio::task::spawn_blocking(move || remedy(&[groups], &number)).await;
        Err(match hint {
            Ok(hint) => error.hint(hint),
            Err(_) => error,
        })
    }
}

/// Whether this user may do everything: root, and whoever runs a daemon without privilege (a relay).
pub(super) fn is_root(uid: u32) -> bool {
    uid == 0 || uid == Uid::effective().as_raw()
}

/// What membership in `groups` allows; `lookup` gives a group's number.
fn granted(groups: &[u32], lookup: &dyn Fn(&str) -> Option<u32>) -> Access {
    let within = |name| lookup(name).is_some_and(|gid| groups.contains(&gid));
    if within(ADMINS) {
        Access::Change
    } else if within(READERS) {
        Access::Read
    } else {
        Access::None
    }
}

/// Most groups a process has (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// The supplementary groups of the process at the other end, as they were when it connected (SO_PEERGROUPS, Linux 4.13):
/// a service may have groups that its user has not. None where the kernel does not tell.
#[expect(unsafe_code, reason = "getsockopt(SO_PEERGROUPS) has no safe wrapper")]
pub(super) fn supplementary(socket: BorrowedFd<'_>) -> Vec<u32> {
    let mut room = 64;
    loop {
        let mut groups: Vec<u32> = vec![0; room];
        let Ok(mut length) = libc::socklen_t::try_from(size_of_val(groups.as_slice())) else {
            return Vec::new();
        };
        // SAFETY: the descriptor is open for the whole call; the kernel writes at most `length` bytes, the size of
        // `groups`, to a pointer that is valid and aligned for them.
        let rc = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let told = usize::try_from(length).unwrap_or(0) / size_of::<u32>();
        if rc == 0 {
            groups.truncate(told);
            return groups;
        }
        // Too little room: the kernel says how much it takes.
        let small = std::io::Error::last_os_error().raw_os_error() == Some(libc::ERANGE);
        if !small || told <= room || told > MAX_GROUPS {
            return Vec::new();
        }
        room = told;
    }
}

/// The groups of a user: the connection's own and those of the user database.
fn groups_of(uid: u32, gid: u32) -> Vec<u32> {
    let name = User::from_uid(Uid::from_raw(uid))
        .ok()
        .flatten()
        .and_then(|user| CString::new(user.name).ok());
    let listed = name
        .and_then(|name| getgrouplist(&name, Gid::from_raw(gid)).ok())
        .unwrap_or_default();
    listed.into_iter().map(Gid::as_raw).chain([gid]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(access: Access) -> Peer {
        Peer {
            uid: 1000,
            gid: 1000,
            pid: None,
            access,
            quota: None,
        }
    }

    #[tokio::test]
    async fn groups_decide_who_may_look_and_who_may_change() {
        let both = |name: &str| Some(if name == ADMINS { 20 } else { 10 });
        let none = |_: &str| None;
        for (groups, access) in [
            (vec![], Access::None),
            (vec![5], Access::None),
            (vec![10], Access::Read),
            (vec![20], Access::Change),
            (vec![10, 20], Access::Change),
        ] {
            assert_eq!(granted(&groups, &both), access, "{groups:?}");
            assert_eq!(
                granted(&groups, &none),
                Access::None,
                "without such groups root only"
            );
        }
        let change = Request::Reload;
        for (access, read, write) in [
            (Access::None, false, false),
            (Access::Read, true, false),
            (Access::Change, true, true),
        ] {
            assert_eq!(peer(access).may(&Request::Id).await.is_ok(), read);
            assert_eq!(peer(access).may(&change).await.is_ok(), write);
        }
        let refusal = peer(Access::Read).may(&change).await.unwrap_err();
        assert_eq!(
            (refusal.kind.exit_code(), refusal.code.as_str()),
            (4, "E-PERMISSION")
        );
        assert_eq!(refusal.hint, remedy(&[ADMINS], &number));
        // A listed user may ask what can be answered of its own alone.
        let listed = Peer {
            quota: Some(1),
            ..peer(Access::None)
        };
        assert!(listed.may(&Request::WorkloadLs).await.is_ok());
        assert!(listed.may(&Request::Id).await.is_err());
        assert!(listed.may(&change).await.is_err());
    }

    #[test]
    fn a_user_the_database_does_not_know_has_its_own_group_only() {
        assert_eq!(groups_of(4_000_000, 4_000_001), vec![4_000_001]);
    }
}
