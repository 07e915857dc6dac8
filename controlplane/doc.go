// Package controlplane serves the operations of AWS KMS that are not cryptographic: the life of KMS keys, aliases, tags, key policies and grants.
// It writes the store (controlplane/store), nothing else does. It does not know HTTP servers, batching, or how a data key is made; of the
// HSM it knows a function that gives random bytes and the name of the root new key versions are made under.
//
//	Serve
//	  route       X-Amz-Target -> row of kmsapi.Operations
//	  verify      SigV4, over the request as the client signed it; the only source of a caller
//	  decode      JSON -> the operation's input, strict
//	  check       every constraint of the model, all failures in one ValidationException
//	  charge      one request of the caller's account to the operation's pool
//	  run         resolve the key, authorize (package authz, on the record, policy and grants as the transaction reads them), key state,
//	              change in one transaction
//	  publish     tell the data plane, wait until no later request can use the old view
//	  finish      the one exit: error to exception, log, and later audit
//
// Reading order: server.go, operations.go, decode.go, authorize.go, conditions.go (what conditions see), keystate.go, quotas.go, then one file per family:
// keys.go, deletion.go, aliases.go, tags.go, policies.go, grants.go with grantinput.go.
//
// Serve runs on its caller's goroutine and starts none. Run is the deletion worker, and publishes again what was of unknown outcome (settle.go); it ends with its context.
package controlplane
