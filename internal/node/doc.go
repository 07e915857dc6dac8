// Package node puts one keyplane process together: store, tokens, shards, batcher, both planes. It is the only package besides cmd that
// knows all concrete types, so that tests run the same assembly as the command.
//
//	Start
//	  listener, data plane              /healthz 200 and /readyz 503 from here on
//	  store (etcd in this process)      takes the data directory's lock: a second process ends here
//	  tokens, shards, batcher           the soft token, or PKCS#11 modules
//	  audit key, audit log
//	  sealer, credentials, administrator
//	  custom key stores                 those that were connected connect again in the background
//	  control plane, deletion worker
//	  data plane's parts
//	  XKS proxy, if wanted
//	  stats socket, if wanted           /readyz 200
//
// Close undoes it in reverse: what is in flight is answered first.
package node
