//! The groups of the control socket: one may look, one may change things.

use nix::unistd::Group;

/// Group whose members may look.
pub const READERS: &str = "byway";
/// Group whose members may change things.
pub const ADMINS: &str = "byway-admin";

/// Number of a group; none where there is no such group.
pub(super) fn number(name: &str) -> Option<u32> {
    Group::from_name(name)
        .ok()
        .flatten()
        .map(|group| group.gid.as_raw())
}

/// What lets a user in: a place in these groups, or where they are missing what makes them.
pub(super) fn remedy(groups: &[&str], lookup: &dyn Fn(&str) -> Option<u32>) -> String {
    let missing: Vec<&str> = groups
        .iter()
        .filter(|name| lookup(name).is_none())
        .copied()
        .collect();
    match missing.as_slice() {
        [] => format!("usermod -aG {} USER", groups.join(",")),
        _ => format!(
            "systemd-sysusers      (run it as root: this machine has no group {}, which the package makes by that)",
            missing.join(" and ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_to_a_group_that_does_not_exist() {
        let both = |_: &str| Some(7);
        let readers = |name: &str| (name == READERS).then_some(7);
        let told = "usermod -aG byway,byway-admin USER";
        assert_eq!(remedy(&[READERS, ADMINS], &both), told);
        assert_eq!(remedy(&[READERS], &readers), "usermod -aG byway USER");
        let told = remedy(&[READERS, ADMINS], &readers);
        assert!(
            told.starts_with("systemd-sysusers      (") && told.contains("no group byway-admin,"),
            "{told}"
        );
        assert!(remedy(&[READERS, ADMINS], &|_| None).contains("no group byway and byway-admin,"));
    }
}
