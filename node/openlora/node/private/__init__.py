"""Private jobs: the chain and the block stores hold what is sealed, and the client chooses who may read it.

    client   seals the input under a key of its own, submits its digest, and brings that key, wrapped, to one node at a
             time: the one it names, or the cheapest that could take the job (`inviting`)
    node     opens and checks the prompt, and only then claims: what it cannot run costs it nothing, and the lease
             begins when it has all it needs. It keeps the key in memory alone (`brought`) and seals the answer under it

If the key came after the claim, a client that brings none could have a part of every claimant's bond. So whoever is
invited can read the prompt, whether it then claims or not; nobody else can, the other nodes of the market included.
"""
