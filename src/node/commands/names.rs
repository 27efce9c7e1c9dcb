//! Names this node publishes.

use super::done;
use crate::api::types::{Error, Response};
use crate::model::zone::RecordData;
use crate::node::Core;

impl Core {
    /// `dns add`.
    ///
    /// # Errors
    /// See [`Subnet::dns_add`](crate::model::members::Subnet::dns_add).
    pub fn dns_add(&mut self, text: &str, name: &str, data: &[RecordData], ttl: u32) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        subnet.dns_add(&self.state.me.clone(), name, data, ttl, self.now_ms())?;
        let full = format!("{}.{}", subnet.relative(name), subnet.records.genesis.domain);
        self.save(subnet)?;
        Ok(done(format!("added {full}"), true))
    }

    /// `dns rm`.
    ///
    /// # Errors
    /// `E-NO-NAME`.
    pub fn dns_rm(&mut self, text: &str, name: &str, kind: Option<&str>) -> Result<Response, Error> {
        let mut subnet = self.state.edit(text)?;
        let count = subnet.dns_rm(&self.state.me.clone(), name, kind, self.now_ms())?;
        self.save(subnet)?;
        Ok(done(format!("removed {count} record{}", if count == 1 { "" } else { "s" }), true))
    }
}
