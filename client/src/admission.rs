//! What admission lists did not let in: for tools.

use rollcall_proto::v1;

use crate::directory::Answer;
use crate::error::Error;
use crate::registry::{Kind, Registry};

/// What one server remembers of registrations that admission lists did not let in.
#[derive(Clone, Debug, Default)]
pub struct RefusedRegistrations {
    /// The last first.
    pub refused: Vec<v1::RefusedRegistration>,
    /// There are more.
    pub more: bool,
    /// Registrants that made room for others since that server started.
    pub forgotten: u64,
}

impl Registry {
    /// Who was not admitted to the groups at or below a prefix lately, at the server that happens to be asked: each
    /// remembers what came to its own door. For a certain server make a handle with its address alone. `limit` 0: 1,000.
    ///
    /// # Errors
    /// [`Error::NotPermitted`], [`Error::InvalidName`], and the transient ones.
    pub async fn refused_registrations(
        &self,
        prefix: &str,
        limit: u32,
    ) -> Result<Answer<RefusedRegistrations>, Error> {
        let request = v1::RefusedRegistrationsRequest {
            group_prefix: prefix.into(),
            limit,
        };
        let response = self
            .call(Kind::Read, None, |channel, _| {
                let request = request.clone();
                async move { self.registry_client(channel).refused_registrations(request).await }
            })
            .await?;
        Ok(Answer {
            value: RefusedRegistrations {
                refused: response.refused,
                more: response.more,
                forgotten: response.forgotten,
            },
            header: response.header.unwrap_or_default(),
        })
    }
}
