// Package iam keeps principals: accounts with their root users, users, roles and their sessions, registered services, and the policies that
// say what they may do. It is the part of AWS IAM and AWS STS that users of KMS need.
//
//	table.go       Table: whom an access key speaks for, what an ARN means; read without allocation, changed before a change is answered
//	load.go        how records become Subjects and Callers
//	sessions.go    temporary credentials
//	publish.go     what happens after a write, also one of unknown outcome
//	admin.go       the administrator of an account
//	server.go      Server: one request of the query APIs, from its form to its XML; input.go reads parameters
//	sts.go         GetCallerIdentity, AssumeRole, GetForwardAccessSession
//	principals.go  users, roles and their tags; policies.go, accesskeys.go
//	simulate.go    SimulatePrincipalPolicy: what would be decided, and by which statement
//	registry.go    accounts and services: actions of ours, for principals of the first account
//
// Principals are kept in package store. One Holder stands for one user, role, root user or service; every access key and session of the
// principal shares it, so that a changed policy or a deletion binds all of them at once. A principal that is made again under the same name is
// another one: it has another unique ID and another Holder.
//
// Every operation writes, then brings the table up to date, then answers: a request that arrives after the answer is decided on the change.
//
// A Table owns no goroutine; Run, which its owner calls, does.
package iam
