//! Who calls, and whether groups admit what it registers (design section 8).
//!
//! Admission is judged here, at the door that took the registration, since only here is known where it comes from; a
//! write that goes on to the leader is not asked again. The list is that of the local directory, so a change of it
//! holds on each server as soon as that server has applied it. A group that is not known here may have been created
//! elsewhere a moment ago: the leader is asked before it is taken for one without a list.

use std::sync::Arc;
use std::time::Instant;

use rollcall_core::admission::{NotAdmitted, Rule};
use rollcall_core::directory::{Group, RegisterNode};
use rollcall_core::ids::{Environment, GroupName, NodeKey, SessionId};
use rollcall_proto::v1;
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

use super::convert::{self, prefix_from};
use super::doors::Doors;
use super::listener::Peer;
use super::registry::page;
use super::status::{self, DoorError, of_refusal};
use crate::access::{Attempt, NotPermitted, Principal, RefusedEntry};
use crate::raft::{Freshness, SharedDirectory};

/// Where a caller claims to belong.
const ENVIRONMENT: &str = "rollcall-environment";
/// The label in which a node says so.
const ENVIRONMENT_LABEL: &str = "environment";
/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 512;

impl Doors {
    /// Who calls.
    pub(super) fn principal<T>(&self, request: &Request<T>) -> Result<Principal, v1::Error> {
        let address = request.extensions().get::<Peer>().and_then(|peer| peer.address);
        let environment = environment(request.metadata())?;
        let shown = bearer(request.metadata())?;
        if shown.is_some() && !self.tokens.are_on() {
            let problem = "RC-401: a token was shown to a server without a token file ([tokens] path): configure one, or show none";
            return Err(DoorError::Unauthenticated { problem }.into());
        }
        Principal::new(address, environment, &self.tokens, shown).map_err(|_| unknown_token())
    }

    /// Who calls, if it may change what is not its own.
    pub(super) fn operator<T>(&self, request: &Request<T>) -> Result<Principal, v1::Error> {
        let by = self.principal(request)?;
        by.check_admin().map_err(not_permitted)?;
        Ok(by)
    }

    /// Ends a call that takes an operator and was made by somebody else.
    pub(super) fn check_operator<T>(&self, call: &'static str, request: &Request<T>) -> Result<(), Status> {
        match self.operator(request) {
            Ok(_) => Ok(()),
            Err(error) => self.answer::<()>(call, Err(error)).map(|_| ()),
        }
    }

    /// Looks the token of a caller that stays up again.
    pub(super) fn look_again(&self, by: &mut Principal) -> Result<(), v1::Error> {
        by.look_again(&self.tokens).map_err(|_| unknown_token())
    }

    /// Refuses what the groups do not admit.
    pub(super) async fn admit(
        &self,
        by: &Principal,
        session: Option<SessionId>,
        nodes: &[RegisterNode],
    ) -> Result<(), v1::Error> {
        if let Some(verdict) = self.admit_here(by, session, nodes) {
            return verdict;
        }
        let deadline = tokio::time::Instant::now() + self.limits.read_timeout;
        let confirming = self.reader.consensus().confirm(Freshness::Linearizable, deadline);
        confirming.await.map_err(|failure| status::of_read(&failure))?;
        // A group that is still not there is for the write itself to refuse.
        self.admit_here(by, session, nodes).unwrap_or(Ok(()))
    }

    /// The same by what this server has applied; `None`: one of the groups is not known here.
    pub(super) fn admit_here(
        &self,
        by: &Principal,
        session: Option<SessionId>,
        nodes: &[RegisterNode],
    ) -> Option<Result<(), v1::Error>> {
        let mut groups: Vec<Arc<Group>> = Vec::new();
        {
            let directory = self.reader.consensus().directory().read();
            let mut last: Option<&GroupName> = None;
            for node in nodes {
                let name = &node.key.group;
                if last.replace(name) == Some(name) || groups.iter().any(|group| group.name == *name) {
                    continue;
                }
                // Kept only if it has a list: a group that somebody holds is copied by the next write.
                let group = directory.group(name)?;
                if !group.settings.admission.is_empty() {
                    groups.push(group.clone());
                }
            }
        }
        if groups.is_empty() {
            return Some(Ok(()));
        }
        let judge = |node: &RegisterNode| match groups.iter().find(|group| group.name == node.key.group) {
            Some(group) => self.admit_node(by, session, group, node),
            None => Ok(()),
        };
        Some(nodes.iter().try_for_each(judge))
    }

    fn admit_node(
        &self,
        by: &Principal,
        session: Option<SessionId>,
        group: &Group,
        node: &RegisterNode,
    ) -> Result<(), v1::Error> {
        let list = &group.settings.admission;
        let labelled = node.registration.labels.get(ENVIRONMENT_LABEL);
        let Err(reason) = list.check(&by.candidate(labelled)) else {
            return Ok(());
        };
        let key = NodeKey {
            service: node.key.clone(),
            node: node.registration.id.clone(),
        };
        self.note_refused(by, session, &key, &reason, list.dry_run);
        if list.dry_run {
            return Ok(());
        }
        Err(DoorError::NotAdmitted {
            group: group.name.clone(),
            node: key.node,
            reason,
        }
        .into())
    }

    fn note_refused(
        &self,
        by: &Principal,
        session: Option<SessionId>,
        node: &NodeKey,
        reason: &NotAdmitted,
        dry_run: bool,
    ) {
        let rule = reason.rule();
        self.metrics.not_admitted(rule, dry_run);
        let client = session.map_or_else(String::new, |session| self.client_of(session));
        let attempt = Attempt {
            group: node.service.group.clone(),
            rule,
            address: by.address,
            token: by.token().into(),
            environment: by.environment.clone(),
        };
        let noted = self.refused.note(
            attempt,
            node.clone(),
            client.clone(),
            reason.to_string(),
            dry_run,
            Instant::now(),
        );
        if let Some(count) = noted {
            let address = by.address.map(tracing::field::display);
            let token = by.token();
            tracing::warn!(%node, address, token, client, count, dry_run, %reason, "RC-403: a registration was not admitted");
        }
    }

    /// The name of a session's client.
    fn client_of(&self, session: SessionId) -> String {
        let sides = [self.reader.consensus().directory(), self.reader.ap().view()];
        let known = |directory: &Arc<SharedDirectory>| {
            let directory = directory.read();
            directory.session(session).map(|session| session.client.clone())
        };
        sides.into_iter().find_map(known).unwrap_or_default()
    }

    /// A session's word about nodes is its own word only about nodes that live with it; about any other, its caller
    /// must be permitted to write nodes of that group.
    pub(super) fn check_word_on<'a>(
        &self,
        by: &Principal,
        session: Option<SessionId>,
        nodes: impl Iterator<Item = &'a NodeKey>,
    ) -> Result<(), v1::Error> {
        if !self.tokens.are_on() {
            return Ok(());
        }
        for key in nodes {
            let Err(missing) = by.check_register(&key.service.group) else {
                continue;
            };
            // Whose session it is that owns a node is for the write itself to judge.
            if session.is_none() || self.is_nobodys(key) {
                return Err(not_permitted(missing));
            }
        }
        Ok(())
    }

    /// Whether a node is there and lives with no session.
    fn is_nobodys(&self, key: &NodeKey) -> bool {
        let sides = [self.reader.consensus().directory(), self.reader.ap().view()];
        sides.into_iter().any(|directory| {
            let directory = directory.read();
            let service = directory.service(&key.service);
            let node = service.and_then(|service| service.nodes.get(&key.node));
            node.is_some_and(|node| node.session().is_none())
        })
    }

    pub(super) async fn refused_registrations(
        &self,
        request: v1::RefusedRegistrationsRequest,
    ) -> Result<v1::RefusedRegistrationsResponse, v1::Error> {
        let prefix = prefix_from(&request.group_prefix).map_err(|e| of_refusal(&e))?;
        let limit = page(request.limit);
        let (mut found, forgotten) = self.refused.within(&prefix);
        let more = found.len() > limit;
        found.truncate(limit);
        let now = Instant::now();
        let revision = self.reader.consensus().directory().read().revision();
        let mut header = self.reader.write_header(revision);
        header.read_mode = v1::ReadMode::Local.into();
        Ok(v1::RefusedRegistrationsResponse {
            header: Some(header),
            refused: found
                .into_iter()
                .map(|(attempt, entry)| refused(attempt, entry, now))
                .collect(),
            more,
            forgotten,
        })
    }
}

fn refused(attempt: Attempt, entry: RefusedEntry, now: Instant) -> v1::RefusedRegistration {
    let since = |at| convert::milliseconds(now.saturating_duration_since(at));
    let rule = match attempt.rule {
        Rule::Address => v1::AdmissionRule::Address,
        Rule::Scope => v1::AdmissionRule::Scope,
        Rule::Environment => v1::AdmissionRule::Environment,
    };
    v1::RefusedRegistration {
        group: attempt.group.as_str().into(),
        rule: rule.into(),
        address: attempt
            .address
            .map_or_else(String::new, |address| address.to_string()),
        token: attempt.token,
        client: entry.client,
        environment: attempt.environment.map_or_else(String::new, String::from),
        node: Some(convert::node_key(&entry.node)),
        reason: entry.reason,
        dry_run: entry.dry_run,
        count: entry.count,
        first_ms: since(entry.first_at),
        last_ms: since(entry.last_at),
    }
}

fn unknown_token() -> v1::Error {
    let problem =
        "RC-401: the token is not known to this server: use one of its token file, or have yours added";
    DoorError::Unauthenticated { problem }.into()
}

fn not_permitted(missing: NotPermitted) -> v1::Error {
    let NotPermitted { who, scope } = missing;
    DoorError::NotPermitted { who, scope }.into()
}

/// The token of the call's metadata. More than one, or something else in its place, is no token.
fn bearer(metadata: &MetadataMap) -> Result<Option<&str>, v1::Error> {
    let problem = "RC-401: the metadata authorization is not of the form: Bearer TOKEN";
    let malformed = || v1::Error::from(DoorError::Unauthenticated { problem });
    let mut values = metadata.get_all("authorization").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(malformed());
    }
    let text = value.to_str().map_err(|_| malformed())?;
    let (scheme, token) = text.split_once(' ').ok_or_else(malformed)?;
    let fits = !token.is_empty()
        && token.len() <= TOKEN_BYTES_MAX
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    if scheme.eq_ignore_ascii_case("bearer") && fits {
        Ok(Some(token))
    } else {
        Err(malformed())
    }
}

fn environment(metadata: &MetadataMap) -> Result<Option<Environment>, v1::Error> {
    let invalid = |problem: String| {
        of_refusal(&rollcall_core::directory::Refusal::Invalid {
            field: ENVIRONMENT.into(),
            problem,
        })
    };
    let mut values = metadata.get_all(ENVIRONMENT).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(invalid("is claimed more than once".into()));
    }
    let text = value
        .to_str()
        .map_err(|_| invalid("is not of printable characters".into()))?;
    text.parse()
        .map(Some)
        .map_err(|error: rollcall_core::ids::NameError| invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(pairs: &[(&'static str, &str)]) -> MetadataMap {
        let mut map = MetadataMap::new();
        for (key, value) in pairs {
            map.append(*key, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn a_token_comes_once_and_in_its_form() {
        assert_eq!(bearer(&metadata(&[])).unwrap(), None);
        for good in ["Bearer abc", "bearer abc", "BEARER abc"] {
            assert_eq!(
                bearer(&metadata(&[("authorization", good)])).unwrap(),
                Some("abc")
            );
        }
        let long = format!("Bearer {}", "x".repeat(TOKEN_BYTES_MAX + 1));
        for bad in [
            "",
            "abc",
            "Bearer",
            "Bearer ",
            "Bearer  abc",
            "Bearer a b",
            "Basic abc",
            &long,
        ] {
            let error = bearer(&metadata(&[("authorization", bad)])).unwrap_err();
            assert_eq!(error.code(), v1::ErrorCode::Unauthenticated, "{bad:?}");
            assert!(!error.message.contains("abc"), "{}", error.message);
        }
        let twice = metadata(&[("authorization", "Bearer a"), ("authorization", "Bearer b")]);
        assert!(bearer(&twice).is_err());
    }

    #[test]
    fn an_environment_is_a_name_and_comes_once() {
        let of = |pairs: &[(&'static str, &str)]| environment(&metadata(pairs));
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&[(ENVIRONMENT, "prod")]).unwrap().unwrap().as_str(), "prod");
        let long = "x".repeat(129);
        for bad in ["", "p r", "prod,test", &long] {
            let error = of(&[(ENVIRONMENT, bad)]).unwrap_err();
            assert_eq!(error.code(), v1::ErrorCode::InvalidArgument, "{bad:?}");
            assert!(error.message.starts_with(ENVIRONMENT), "{}", error.message);
        }
        assert!(of(&[(ENVIRONMENT, "prod"), (ENVIRONMENT, "prod")]).is_err());
    }
}
