//! Many machines at once.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;

use crate::support::processes::status_field;
use crate::support::{debian_image, tools, Input, Job};

#[test]
fn twenty_machines_on_one_image() {
    let Some(job) = Job::new() else { return };
    let Some(image) = debian_image() else { return };
    let before = (
        tools::sha256(image),
        image.metadata().unwrap().mtime_nsec(),
        image.metadata().unwrap().mtime(),
    );
    let machines: Vec<_> = (0..20)
        .map(|number| {
            // Each writes into its own view of the image, and into the one job directory.
            let script = format!(
                "echo {number} >/var/tmp/own && sleep 0.3 && cat /var/tmp/own && sha256sum </usr/bin/perl >sum{number}"
            );
            job.sh(&script).image(image).with(&["--memory", "96M"]).limit(240).start()
        })
        .collect();
    for (number, machine) in machines.into_iter().enumerate() {
        machine.finish().exits(0).prints(&format!("{number}\n"));
    }
    let sums: HashSet<String> = (0..20)
        .map(|number| job.read(&format!("sum{number}")))
        .collect();
    assert_eq!(sums.len(), 1, "{sums:?}");
    let after = (
        tools::sha256(image),
        image.metadata().unwrap().mtime_nsec(),
        image.metadata().unwrap().mtime(),
    );
    assert_eq!(before, after, "the image has changed");
}

#[test]
fn machines_are_spread_over_the_hosts_cpus() {
    let Some(job) = Job::on_uml("others are not bound to a CPU") else {
        return;
    };
    if std::thread::available_parallelism().unwrap().get() < 2 {
        eprintln!("skipped: there is one CPU");
        return;
    }
    let start = |number: u32| {
        let report = format!("report{number}");
        let run = job
            .sh("echo up; read -r line")
            .with(&["--report", report.as_str()]);
        run.input(Input::Open).start()
    };
    // Three, since a machine of another test may hold a CPU meanwhile.
    let machines: Vec<_> = (0..3).map(start).collect();
    let mut bound = HashSet::new();
    for machine in &machines {
        machine.until_it_prints("up");
        let pid = machine.machine(&job.site.hypervisor);
        bound.insert(status_field(pid, "Cpus_allowed_list").unwrap());
    }
    for mut machine in machines {
        machine.end_input();
        machine.finish();
    }
    assert!(bound.len() > 1, "all on {bound:?}");
    assert!(
        bound.iter().all(|list| list.parse::<usize>().is_ok()),
        "not bound: {bound:?}"
    );
    let reported: HashSet<String> = (0..3)
        .map(|number| {
            let report: serde_json::Value =
                serde_json::from_str(&job.read(&format!("report{number}"))).unwrap();
            report["machine"]["pinned-to"].to_string()
        })
        .collect();
    assert_eq!(reported, bound);
}
