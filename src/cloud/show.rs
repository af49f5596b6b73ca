//! What is told of a cloud's machine before it is started, and when it is.

use std::time::SystemTime;

use anyhow::Result;
use apppot_cloud::{iso_time, Ec2, Instance, Price};
use serde_json::json;

use super::objects::Objects;
use super::plan::{Documents, Plan};
use super::BACKEND;
use crate::cli::General;
use crate::failure::{print_out, say};

/// `--dry-run`: everything that would be asked for, without what only the machine may know.
pub(super) fn dry_run(plan: &Plan, objects: &Objects, general: &General) -> Result<u8> {
    let documents = plan.documents(objects, 1, usize::from(plan.reads_stdin))?;
    let Documents {
        contract,
        user_data,
    } = &documents;
    let parameters = plan.with_request(user_data, |new| new.parameters())?;
    // It is shown by itself.
    let parameters = parameters
        .into_iter()
        .filter(|(name, _)| name != "UserData");
    let (contract, user_data) = (redacted(contract), redacted(user_data));
    if general.json {
        let request: serde_json::Map<_, _> = parameters
            .map(|(name, value)| (name, value.into()))
            .collect();
        let value = json!({
            "backend": BACKEND,
            "region": plan.cloud.region,
            "objects": objects.place(&plan.bucket),
            "document": contract,
            "user-data": user_data,
            "run-instances": request,
        });
        print_out(&format!("{value:#}\n"));
        return Ok(0);
    }
    print_out(&format!(
        "backend: {BACKEND}\nregion: {}\n",
        plan.cloud.region
    ));
    print_out(&format!("objects: {}\n", objects.place(&plan.bucket)));
    print_out(&format!("contract, in an object:\n{contract}"));
    print_out(&format!("user-data:\n{user_data}"));
    print_out("RunInstances:\n");
    for (name, value) in parameters {
        print_out(&format!("  {name}={value}\n"));
    }
    Ok(0)
}

/// A document whose URLs have no signature any more.
fn redacted(document: &str) -> String {
    let line = |line: &str| {
        let is_url = ["apppot.store=", "apppot.document="]
            .iter()
            .any(|key| line.starts_with(key));
        // The question mark, escaped.
        match line.find("%3F").filter(|_| is_url) {
            Some(at) => format!("{}%3F...\n", &line[..at]),
            None => format!("{line}\n"),
        }
    };
    document.lines().map(line).collect()
}

/// `-v`: what was started, and what it may cost.
pub(super) fn describe(plan: &Plan, objects: &Objects, instance: &Instance, price: &str) {
    say(&format!("machine {}: {BACKEND}", plan.id));
    say(&format!("  image:       {}", plan.image));
    say(&format!("  instance:    {} ({})", instance.id, plan.kind));
    say(&format!("  region:      {}", plan.cloud.region));
    say(&format!("  objects:     {}", objects.place(&plan.bucket)));
    say(&format!("  deadline:    {}", iso_time(plan.deadline)));
    say(&format!("  price:       {price}"));
}

/// What the machine costs, as far as the cloud says so.
pub(super) fn price(plan: &Plan) -> String {
    let cloud = plan.cloud.hasty();
    let now = SystemTime::now();
    let found = match plan.is_spot {
        true => Ec2::new(&cloud).and_then(|ec2| Price::spot(&ec2, &plan.kind, &iso_time(now))),
        false => Price::on_demand(&cloud, &plan.kind),
    };
    match found {
        Ok(Some(Price { amount, currency })) => {
            let left = plan.end().duration_since(now).unwrap_or_default();
            let most = amount * left.as_secs_f64() / 3600.0;
            format!(
                "{amount} {currency} an hour, {most:.2} {currency} at most, and disk and traffic"
            )
        }
        Ok(None) => String::from("not known: this cloud has no list"),
        Err(error) => format!("not known: {error}"),
    }
}

/// Warns of credentials that end before the job may: URLs signed with them do so, too.
pub(super) fn warn_of_credentials(plan: &Plan) {
    // As 'aws configure export-credentials --format env' writes it.
    let Ok(text) = std::env::var("AWS_CREDENTIAL_EXPIRATION") else {
        return;
    };
    if std::env::var_os("AWS_SESSION_TOKEN").is_none() {
        return;
    }
    let needed = iso_time(plan.deadline);
    let is_utc = text.ends_with('Z') || text.ends_with("+00:00");
    let early = |now: &str| {
        text.get(..19)
            .is_some_and(|end| end < needed.get(..19).unwrap_or_default() && end > now)
    };
    if is_utc && early(&iso_time(SystemTime::now())) {
        crate::failure::warn(&format!(
            "the credentials end at {text}, before the job's deadline ({needed}): what it has not stored by then is lost"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_not_shown() {
        let text = "#apppot/1\napppot.arg=a%3Fb\napppot.store=files,http://b/o%3FX-Amz-Signature%3Dhidden\n";
        let shown = redacted(text);
        assert_eq!(
            shown,
            "#apppot/1\napppot.arg=a%3Fb\napppot.store=files,http://b/o%3F...\n"
        );
    }
}
