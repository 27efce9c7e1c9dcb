//! The founding of a subnet, as most tests begin with it.

use crate::model::id::Name;
use crate::model::record::Admission;
use crate::model::state::Founding;

/// What `byway create NAME` asks for where nothing else was said: prefixes of both families of its own choice, joins that
/// wait for an approval, a machine that is closed. The salt is 16 times 1, so that the same founder gets the same subnet
/// again, and nothing stands in the way of the prefixes. A test that means something else says so: `Founding { cidr6:
/// None, ..founding(name, member) }`.
pub fn founding(name: Name, member: Name) -> Founding {
    Founding {
        name,
        cidr4: Some(None),
        cidr6: Some(None),
        block4: None,
        admission: Admission::Approve,
        domain: None,
        grant_life: None,
        member,
        around: Default::default(),
        salt: [1; 16],
        host: None,
    }
}
