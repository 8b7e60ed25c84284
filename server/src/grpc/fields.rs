//! The names of single settings on the wire: the paths of their fields, `guard.window_ms` for one.

use std::collections::BTreeSet;

use rollcall_core::directory::{GroupField, Refusal, ServiceField};

const GUARD: [(&str, ServiceField); 4] = [
    ("guard.share_basis_points", ServiceField::GuardShare),
    ("guard.window_ms", ServiceField::GuardWindow),
    ("guard.keep_last", ServiceField::GuardKeepLast),
    ("guard.hold_max_ms", ServiceField::GuardHoldMax),
];
const SERVICE: [(&str, ServiceField); 3] = [
    ("default_kind", ServiceField::DefaultKind),
    ("metadata", ServiceField::Metadata),
    ("nodes_max", ServiceField::NodesMax),
];
const GROUP: [(&str, GroupField); 9] = [
    ("mode", GroupField::Mode),
    ("auto_create", GroupField::AutoCreate),
    ("services_max", GroupField::ServicesMax),
    ("metadata", GroupField::Metadata),
    ("admission", GroupField::Admission),
    ("admission.cidrs", GroupField::AdmissionCidrs),
    ("admission.scopes", GroupField::AdmissionScopes),
    ("admission.environments", GroupField::AdmissionEnvironments),
    ("admission.dry_run", GroupField::AdmissionDryRun),
];

/// The settings of a service that `names` name; `guard` is all of the guard's.
pub(super) fn service_fields_from(names: &[String]) -> Result<BTreeSet<ServiceField>, Refusal> {
    let mut fields = BTreeSet::new();
    for name in names {
        if !add_service_field(name, &mut |field| _ = fields.insert(field)) {
            return Err(unknown(name));
        }
    }
    Ok(fields)
}

/// The settings of a group that `names` name; `defaults.` stands before those of its services.
pub(super) fn group_fields_from(names: &[String]) -> Result<BTreeSet<GroupField>, Refusal> {
    let mut fields = BTreeSet::new();
    for name in names {
        let own = GROUP.iter().find(|(own, _)| own == name);
        let known = match (own, name.strip_prefix("defaults.")) {
            (Some((_, field)), _) => {
                fields.insert(*field);
                true
            }
            (None, Some(name)) => {
                add_service_field(name, &mut |field| _ = fields.insert(GroupField::Default(field)))
            }
            (None, None) => false,
        };
        if !known {
            return Err(unknown(name));
        }
    }
    Ok(fields)
}

/// Whether the name is one.
fn add_service_field(name: &str, add: &mut impl FnMut(ServiceField)) -> bool {
    if name == "guard" {
        GUARD.iter().for_each(|(_, field)| add(*field));
        return true;
    }
    let found = SERVICE.iter().chain(&GUARD).find(|(known, _)| *known == name);
    if let Some((_, field)) = found {
        add(*field);
    }
    found.is_some()
}

fn unknown(name: &str) -> Refusal {
    Refusal::Invalid {
        field: "fields".into(),
        problem: format!("{name:?} is no setting that this server knows"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_setting_has_a_name_and_no_other_name_is_taken() {
        let all = service_fields_from(&names(&["default_kind", "metadata", "nodes_max", "guard"])).unwrap();
        assert_eq!(all.len(), 7);
        let one = service_fields_from(&names(&["guard.window_ms"])).unwrap();
        assert_eq!(one, BTreeSet::from([ServiceField::GuardWindow]));
        let group = group_fields_from(&names(&[
            "mode",
            "admission",
            "defaults.guard",
            "defaults.metadata",
        ]));
        assert_eq!(group.unwrap().len(), 7);
        for wrong in ["", "guard.window", "defaults.guard", "mode", "metadata.owner"] {
            let refusal = service_fields_from(&names(&[wrong])).unwrap_err();
            assert!(refusal.to_string().contains("no setting"), "{refusal}");
        }
        for wrong in ["defaults", "defaults.mode", "defaults.", "guard"] {
            assert!(group_fields_from(&names(&[wrong])).is_err(), "{wrong}");
        }
    }
}
