//! Admission: the flags of `group put`, and `group refused`.

use clap::Args;
use futures_util::future::join_all;
use rollcall_client::RefusedRegistrations;
use rollcall_proto::v1 as wire;
use serde::Serialize;

use crate::context::Context;
use crate::exit::Failure;
use crate::names::prefix_of;
use crate::output::record::millis_text;
use crate::output::table::Table;
use crate::talk::say;

/// What empties a rule.
const ANY: &str = "any";

/// Who may register into a group. A rule that is named takes the place of what was listed under it.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Admission: each rule that has entries must be met by one of them")]
pub(crate) struct AdmissionFlags {
    /// A network that may register, such as 10.1.0.0/16 or 2001:db8::/32, repeatable; any: from anywhere
    #[arg(long, value_name = "NETWORK")]
    admit_cidr: Vec<String>,
    /// A scope of the registrant's token, such as register:prod/feed, repeatable; any: none is asked for
    #[arg(long, value_name = "SCOPE")]
    admit_scope: Vec<String>,
    /// An environment that the registrant claims, repeatable; any: none is asked for
    #[arg(long, value_name = "NAME")]
    admit_environment: Vec<String>,
    /// Whoever is not listed is reported and let in; --admission-dry-run=false means it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    admission_dry_run: Option<bool>,
}

impl AdmissionFlags {
    /// The list that is named, and the names of what is named of it.
    pub(crate) fn settings(&self) -> Result<(Option<wire::AdmissionList>, Vec<String>), Failure> {
        let list = wire::AdmissionList {
            cidrs: entries("--admit-cidr", &self.admit_cidr)?,
            scopes: entries("--admit-scope", &self.admit_scope)?,
            environments: entries("--admit-environment", &self.admit_environment)?,
            dry_run: self.admission_dry_run.unwrap_or_default(),
        };
        let named = [
            ("admission.cidrs", !self.admit_cidr.is_empty()),
            ("admission.scopes", !self.admit_scope.is_empty()),
            ("admission.environments", !self.admit_environment.is_empty()),
            ("admission.dry_run", self.admission_dry_run.is_some()),
        ];
        let named = named.into_iter().filter(|(_, is_named)| *is_named);
        let named: Vec<String> = named.map(|(name, _)| name.to_owned()).collect();
        Ok(((!named.is_empty()).then_some(list), named))
    }
}

fn entries(flag: &str, said: &[String]) -> Result<Vec<String>, Failure> {
    match said {
        [only] if only == ANY => Ok(Vec::new()),
        several if several.iter().any(|entry| entry == ANY) => Err(Failure::usage(format!(
            "{flag} {ANY} stands alone: it empties the rule"
        ))),
        entries => Ok(entries.to_vec()),
    }
}

/// Arguments of `group refused`.
#[derive(Args, Debug)]
pub(crate) struct RefusedArguments {
    /// A group, or a leading part of its path; everything if left out
    prefix: Option<String>,
}

#[derive(Serialize)]
struct RefusedBody {
    /// The last first, of each server.
    refused: Vec<Refused>,
    servers: Vec<ServerBody>,
}

#[derive(Serialize)]
struct ServerBody {
    server: u64,
    address: String,
    /// Registrants that made room for others since it started.
    forgotten: u64,
    /// It has more than it told.
    more: bool,
    /// Why it did not answer.
    problem: Option<String>,
}

#[derive(Serialize)]
struct Refused {
    group: String,
    node: String,
    address: String,
    token: String,
    client: String,
    environment: String,
    rule: &'static str,
    verdict: &'static str,
    reason: String,
    count: u64,
    first_ms: u64,
    last_ms: u64,
    server: u64,
}

impl Refused {
    fn new(server: u64, told: wire::RefusedRegistration) -> Self {
        let rule = match told.rule() {
            wire::AdmissionRule::Unspecified => "unknown",
            wire::AdmissionRule::Address => "address",
            wire::AdmissionRule::Scope => "scope",
            wire::AdmissionRule::Environment => "environment",
        };
        let key = told.node.unwrap_or_default();
        Self {
            group: told.group,
            node: format!("{}/{}", key.service, key.node),
            address: told.address,
            token: told.token,
            client: told.client,
            environment: told.environment,
            rule,
            verdict: if told.dry_run { "reported" } else { "refused" },
            reason: told.reason,
            count: told.count,
            first_ms: told.first_ms,
            last_ms: told.last_ms,
            server,
        }
    }
}

/// Each server remembers what came to its own door, so all of them are asked.
pub(crate) async fn refused(context: &Context, asked: &RefusedArguments) -> Result<(), Failure> {
    let prefix = prefix_of(asked.prefix.as_deref());
    let members = context.servers.members().await?.value;
    let ask = |member: wire::Member| async move {
        let told = ask_one(context, &member.client_address, prefix).await;
        (member.server, member.client_address, told)
    };
    let mut body = RefusedBody {
        refused: Vec::new(),
        servers: Vec::new(),
    };
    let mut failure = None;
    for (server, address, told) in join_all(members.into_iter().map(ask)).await {
        let mut row = ServerBody {
            server,
            address,
            forgotten: 0,
            more: false,
            problem: None,
        };
        match told {
            Ok(told) => {
                (row.forgotten, row.more) = (told.forgotten, told.more);
                let told = told.refused.into_iter();
                body.refused.extend(told.map(|told| Refused::new(server, told)));
            }
            Err(error) => {
                row.problem = Some(error.to_string());
                say(format_args!("server {server}: {error}"));
                failure = Some(error);
            }
        }
        body.servers.push(row);
    }
    body.refused.sort_by_key(|refused| refused.last_ms);
    match failure {
        Some(failure) if body.servers.iter().all(|row| row.problem.is_some()) => Err(failure),
        _ => context.printer.print(&body, || table(&body.refused)),
    }
}

async fn ask_one(context: &Context, address: &str, prefix: &str) -> Result<RefusedRegistrations, Failure> {
    let server = context.servers.only(address)?;
    Ok(server.refused_registrations(prefix, 0).await?.value)
}

fn table(refused: &[Refused]) -> Table {
    let columns = [
        "GROUP", "NODE", "ADDRESS", "TOKEN", "RULE", "COUNT", "LAST", "VERDICT",
    ];
    let mut table = Table::new(&columns).wide(&["CLIENT", "ENVIRONMENT", "FIRST", "SERVER", "REASON"]);
    for refused in refused {
        let text = |text: &str| {
            if text.is_empty() {
                "-".into()
            } else {
                text.to_owned()
            }
        };
        table.row(vec![
            refused.group.clone(),
            refused.node.clone(),
            text(&refused.address),
            text(&refused.token),
            refused.rule.into(),
            refused.count.to_string(),
            format!("{} ago", millis_text(refused.last_ms.max(1))),
            refused.verdict.into(),
            text(&refused.client),
            text(&refused.environment),
            format!("{} ago", millis_text(refused.first_ms.max(1))),
            refused.server.to_string(),
            refused.reason.clone(),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: AdmissionFlags,
    }

    fn parsed(words: &str) -> AdmissionFlags {
        Line::try_parse_from(std::iter::once("put").chain(words.split_whitespace()))
            .unwrap()
            .flags
    }

    #[test]
    fn only_the_rules_that_are_named_are_written() {
        assert_eq!(parsed("").settings().unwrap(), (None, Vec::new()));
        let (list, named) = parsed("--admit-cidr 10.0.0.0/8 --admit-cidr ::1 --admit-scope any")
            .settings()
            .unwrap();
        let list = list.unwrap();
        assert_eq!((list.cidrs.len(), list.scopes.len()), (2, 0));
        assert_eq!(named, ["admission.cidrs", "admission.scopes"]);
        let (list, named) = parsed("--admission-dry-run").settings().unwrap();
        assert!(list.unwrap().dry_run);
        assert_eq!(named, ["admission.dry_run"]);
        let (list, _) = parsed("--admission-dry-run=false --admit-environment prod")
            .settings()
            .unwrap();
        let list = list.unwrap();
        assert_eq!(
            (list.dry_run, list.environments.as_slice()),
            (false, &["prod".to_owned()][..])
        );
        let failure = parsed("--admit-cidr any --admit-cidr ::1")
            .settings()
            .unwrap_err();
        assert!(
            failure.to_string().contains("--admit-cidr any stands alone"),
            "{failure}"
        );
    }
}
